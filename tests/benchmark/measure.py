"""Time and memory of passes measured in turn, so that a machine whose speed drifts is the same for all of them."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile, record_function

_MARK = "measured pass"


def median_seconds(passes: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, float]:
    """Median wall time of each pass over `repeats` rounds in which every pass runs once, after one round unmeasured."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    for round_number in range(repeats + 1):
        for name, run in passes.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if round_number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def peak_extra_bytes(run: Callable[[], None], device: str) -> int:
    """Most memory in tensors at any time of a pass above what was in use before it.

    Gradients of parameters, which every pass leaves behind, were in use before. Counted by torch's allocators, so it
    does not depend on what the C library has kept from earlier.
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
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        # What was allocated before the recording is not seen to be freed: the first pass replaces all of it.
        run()
        with record_function(_MARK):
            run()
    results = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    start = next(event.start_ns() for event in results if event.name() == _MARK)
    changes = [(event.start_ns(), event.nbytes()) for event in results if event.name() == "[memory]"]  # type: ignore[attr-defined]
    in_use = accumulate(size for when, size in sorted(changes) if when >= start)
    return max(0, *in_use)


def wait(device: str) -> None:
    """Until a GPU has done what it was given; a CPU always has."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_bytes(device: str = "cpu") -> int:
    """Most memory this process has had in use so far: by the system's count, or in tensors of a GPU by torch's."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
