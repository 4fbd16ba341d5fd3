"""Several processes that torchrun started for one job: they meet, agree on what to do, and end together.

In one process nothing of this runs. Whatever may fail on one rank alone happens inside `together()`, or all of the job
inside `one_failure_ends_all()` (`failures.py`), so that no rank waits for one that has ended.
"""

from __future__ import annotations

import atexit
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import datasets
import torch
import torch.distributed as dist
import transformers
from torch.distributed import distributed_c10d
from tqdm.std import tqdm

from sae_lens_sparsemax.settings.sentences import must_be

_PATIENCE = timedelta(days=30)
_TOLD_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def together() -> Iterator[None]:
    """What all ranks do, and what fails on all if it fails on one; in one process, nothing but the block.

    The lowest rank that failed raises its error, for one rank is to say what is wrong; on the others the block ends
    with `SystemExit`. Blocks may not be nested, and inside there must be nothing that waits for other ranks.
    """
    if not dist.is_initialized():
        yield
        return
    error: BaseException | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    failed = [rank for rank, has_failed in enumerate(gathered(error is not None)) if has_failed]
    if not failed:
        return
    if error is not None and dist.get_rank() == failed[0]:
        raise error
    raise SystemExit(2)


def gathered(value: Any, patiently: bool = False) -> list[Any]:
    """The values of all ranks, in their order; without other processes, the one there is.

    Args:
        value: this rank's, to be pickled.
        patiently: another rank may take longer than torch's half hour; one that has ended is noticed still.
    """
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, _patient_group(dist.group.WORLD) if patiently else None)
    return values


@cache
def _patient_group(_of: Any) -> Any:
    # Made where all ranks ask for it together: whoever waits for the others to make it notices none that has ended.
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


class Turns:
    """Who of the processes does which part of a job whose parts take unknown times: whoever is free takes the next.

    Each asks about every part in its order, made together; in one process, all are its own.
    """

    _n_made = 0

    def __init__(self) -> None:
        self._store = distributed_c10d._get_default_store() if dist.is_initialized() else None
        # As often as this was made by each, so that another job counts for itself.
        Turns._n_made += 1
        self._key, self._asked, self._mine = f"turns of job {Turns._n_made}", 0, -1

    def is_mine(self) -> bool:
        """Whether this process takes the next part."""
        number, self._asked = self._asked, self._asked + 1
        if self._store is None:
            return True
        if self._mine < number:
            self._mine = self._store.add(self._key, 1) - 1
        return self._mine == number


def is_first() -> bool:
    """Whether this process writes files and shows progress: that of rank 0, or the only one."""
    return not dist.is_initialized() or dist.get_rank() == 0


def join() -> bool:
    """Meet the other processes that torchrun started, once; every rank but the first is quiet from here on.

    Returns:
        Whether there are others. A program may also have made the group of processes itself.

    Raises:
        ValueError: there are fewer CUDA devices than processes on this machine.
    """
    if not dist.is_initialized():
        if not all(os.environ.get(name) for name in _TOLD_BY_TORCHRUN) or int(os.environ["WORLD_SIZE"]) == 1:
            return False
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend)
        atexit.register(_leave)
        with together():
            _take_device()
        if dist.get_rank() != 0:
            _be_quiet()
    return dist.get_world_size() > 1


def own_part() -> tuple[int, int]:
    """Which part of a job that can be divided is this process's, counted from 0, and of how many."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def require_one_process(what: str) -> None:
    """Raise a ValueError, on all ranks, if torchrun started several processes for what one alone can do."""
    join()
    with together():
        if (size := len(gathered(None))) > 1:
            raise must_be("torchrun's --nproc-per-node", f"1 with {what}", size)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _take_device() -> None:
    """Make this process's CUDA device the one that `cuda` means."""
    if not torch.cuda.is_available():
        return
    local, n_devices = local_rank(), torch.cuda.device_count()
    if local >= n_devices:
        raise must_be("torchrun's --nproc-per-node", f"at most the {n_devices} CUDA devices of a machine", local + 1)
    torch.cuda.set_device(local)


def local_rank() -> int:
    """Which of the processes of this machine this is."""
    return int(os.environ.get("LOCAL_RANK", 0))


def own_device(device: str, name: str = "device") -> str:
    """What stands for a device on this process: of several on a machine, each has a CUDA device of its own.

    Raises:
        ValueError: there are several, and the setting `name` has them all take the same one.
    """
    if not dist.is_initialized() or torch.device(device).type != "cuda":
        return device
    if torch.device(device).index is not None:
        raise must_be(name, "'cuda' on several ranks, each of which takes a device of its own", device)
    return f"{device}:{local_rank()}"


def _be_quiet() -> None:
    """Show no bars, warnings and logs but errors."""
    # tqdm reads TQDM_DISABLE when it is imported, which is long ago.
    show = tqdm.__init__
    tqdm.__init__ = lambda self, *args, **kwargs: show(self, *args, **kwargs | {"disable": True})
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    # Every call of wandb's does nothing then, so ranks need not part ways to log.
    os.environ["WANDB_MODE"] = "disabled"
