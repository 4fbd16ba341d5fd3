"""Processes that decode ahead: they outlive a signal to the whole job, and do without them when they cannot work.

A worker whose batch does not fit into shared memory, or that the system kills, would leave torch's loader waiting, or
raise in the middle of a training step. Here either is an error of the loader, when the next batch is asked for.
"""

import errno
import multiprocessing
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

_SHARED_MEMORY = Path("/dev/shm")


class NoSharedMemory(RuntimeError):
    """A worker has no room for what it decoded."""


def decoded_ahead(decoder: Any, tasks: Iterable[Any], n_workers: int) -> Iterator[Any]:
    """`decoder[task]` for every task, in order, made by so many processes; by this one for 0.

    Raises:
        RuntimeError, OSError: a worker failed or ended, or there is no shared memory for it (see `why_workers_failed`).
        EOFError: a worker ended while it handed a batch over.
    """
    if n_workers:
        multiprocessing.Lock()  # where it fails, torch's loader would fail too, and complain once more when it goes
    loader = DataLoader(
        decoder,
        sampler=tasks,
        batch_size=None,
        num_workers=n_workers,
        # Enough for a model that is faster now and then; more only takes memory.
        prefetch_factor=2 if n_workers else None,
        worker_init_fn=_leave_signals_to_the_parent,
        # Without one of its own, the loader would draw its seed from the generator that shuffles tokens.
        generator=torch.Generator(),
    )
    if not n_workers or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    # torch's handler raises wherever the main process is when a worker ends. Without it, the end is found when the
    # next batch is waited for.
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before)


def to_parent(pixels: torch.Tensor) -> torch.Tensor:
    """What a worker decoded, in shared memory; elsewhere, as it is.

    Raises:
        NoSharedMemory: there is none left. Without this, torch would lose the batch in another thread.
    """
    if get_worker_info() is None:
        return pixels
    try:
        return pixels.share_memory_()
    except (RuntimeError, OSError) as error:
        raise NoSharedMemory(str(error)) from error


def why_workers_failed(error: Exception) -> str:
    """In one sentence, what an error of `decoded_ahead` comes from and which setting helps."""
    if isinstance(error, NoSharedMemory) or getattr(error, "errno", None) in (errno.EROFS, errno.ENOSPC, errno.EACCES):
        size = f"{shutil.disk_usage(_SHARED_MEMORY).total / 1e6:,.3g} MB" if _SHARED_MEMORY.is_dir() else "missing"
        return f"{_SHARED_MEMORY} ({size}) is too small or cannot be written to; enlarge it or lower n_decode_workers"
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return f"a process of n_decode_workers failed, or was ended for lack of memory: {last}"


def _leave_signals_to_the_parent(_worker: int) -> None:
    """In a worker: a signal to all processes of a job lets the main one save a checkpoint, with its workers alive.

    They end when the loader tells them to, and within seconds when their parent is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
