"""How this process gets its memory from the system."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names of glibc's malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next allocation, however large; for processes that train.

    Scores and gradients of a wide dictionary are tens of megabytes that are freed and asked for again in every step.
    glibc hands pieces of that size back to the system at once, which then clears every page anew: up to a fifth of a
    step. The process stays at its peak size in return.

    Returns:
        Whether it took effect: false where malloc is not glibc's, and where the user's environment tunes it already.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _LARGEST))
