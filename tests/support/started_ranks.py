"""Ranks started as torchrun starts them: processes that share a store which outlives them, told by the environment."""

import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.fresh_processes import FRESH, print_to


def _run(environment: dict[str, str], log: Path, work: Callable[..., Any], words: tuple[Any, ...]) -> None:
    print_to(log)
    os.environ |= environment
    torch.set_num_threads(1)
    raise SystemExit(work(*words))


class StartedRanks:
    """Processes of one run, and all that they print.

    Args:
        size: how many; 1 is told of no others.
        log: the file that they print to.
        work: what each does, importable by its name; what it returns is the exit status.
        words: what it is given.
    """

    def __init__(self, size: int, log: Path, work: Callable[..., Any], *words: Any) -> None:
        self.log = log
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        shared = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        self.processes: list[BaseProcess] = []
        for rank in range(size):
            environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
            self.processes.append(FRESH.Process(target=_run, args=(environment, log, work, words)))
            self.processes[-1].start()

    def wait(self, seconds: float = 120) -> list[int | None]:
        """The exit statuses, None for one that has not ended in time, and is killed."""
        for process in self.processes:
            process.join(seconds)
        statuses = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return statuses

    def printed(self) -> str:
        return self.log.read_text() if self.log.exists() else ""
