"""How this process gets its memory from the system."""

import os


def use_huge_pages() -> None:
    """Let torch ask Linux for huge pages; to be called before the first tensor is made, else it has no effect.

    Gradients of a wide dictionary are tens of megabytes that are new in every step, and at the usual 4 kB a page the
    system takes about as long to hand them over as to fill them. A setting of the user's own is left alone.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
