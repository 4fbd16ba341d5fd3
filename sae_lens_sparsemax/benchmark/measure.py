"""Time and memory of passes measured in turn, so that a machine whose speed drifts is the same for all of them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def median_seconds(passes: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, float]:
    """Median wall time of each pass over `repeats` rounds in which every pass runs once, after one round unmeasured."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    for round_number in range(repeats + 1):
        for name, run in passes.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if round_number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def peak_extra_bytes(run: Callable[[], None], device: str) -> int | None:
    """Most memory in use during a pass above what was in use before it; None where it cannot be measured.

    Gradients of parameters, which every pass leaves behind, were in use before. On a GPU torch counts it; on Linux
    the kernel keeps the process's high-water mark.
    """
    run()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not _CLEAR.exists():
        return None
    _release_free_memory()
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def peak_bytes() -> int | None:
    """Most memory this process has had in use so far; None where it cannot be measured."""
    return _status("VmHWM") if _STATUS.exists() else None


def _release_free_memory() -> None:
    """Hand the C library's free memory back to the system, which else counts as in use before the pass."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
