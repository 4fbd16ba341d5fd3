"""Functions run on several ranks of torch.distributed, with gloo, each a process of one thread."""

import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.fresh_processes import FRESH

ALL_MEMBERS = "TRIAL_RANKS" in os.environ
"""Whether the slow tests of several ranks run every mesh, case and cause; each start of ranks takes seconds."""


def on_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function gives on each of so many ranks; an error on any of them is an AssertionError."""
    with tempfile.TemporaryDirectory() as folder:
        pipes = [FRESH.Pipe(duplex=False) for _ in range(size)]
        processes = [
            FRESH.Process(target=_run, args=(rank, size, Path(folder) / "store", pipe[1], function, args))
            for rank, pipe in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()
        results = []
        for receiver, _ in pipes:
            try:
                results.append(receiver.recv())
            except EOFError:
                results.append((False, "a rank ended without a word"))
        for process in processes:
            process.join()
    errors = [result for worked, result in results if not worked]
    # When one rank ends, the others report that they have lost it.
    assert not errors, min(errors, key=lambda error: "gloo/transport" in error)
    return [result for _, result in results]


def _run(rank: int, size: int, store: Path, sender: Connection, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=store.as_uri(), rank=rank, world_size=size, timeout=timedelta(seconds=120)
    )
    try:
        sender.send((True, function(*args)))
    except BaseException:
        sender.send((False, f"rank {rank}: {traceback.format_exc()}"))
    finally:
        dist.destroy_process_group()
