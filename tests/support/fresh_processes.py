"""Processes of their own, forked from a server that has imported everything and computed nothing.

torch's threads do not outlive a fork, so one that has used them is none to fork from; and no start waits for imports.
"""

import contextlib
import faulthandler
import logging
import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from unittest import mock

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(
    ["sae_lens_sparsemax.cli.main", "sae_lens_sparsemax.training.text_runner", "datasets", "transformer_lens"]
)


def serve_from_here() -> None:
    """Let the server be a fork of this process, which has imported the tests: a new one would import them again."""
    resource_tracker.ensure_running()
    with mock.patch.object(util, "spawnv_passfds", _fork):
        forkserver.ensure_running()


def _fork(_: bytes, command: list[str], descriptors: list[int]) -> int:
    """What `multiprocessing` starts a command with, which here is Python's `-c CODE`."""
    if process := os.fork():
        return process
    try:
        faulthandler.disable()  # it would write to what is closed now
        logging.root.handlers.clear()  # pytest's, which keep what is logged from being printed
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        # Closed alone, their numbers would be given to other files, to which what still holds them would then write.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in {int(each.name) for each in Path("/dev/fd").iterdir()} - {0, 1, 2, nowhere, *descriptors}:
            with contextlib.suppress(OSError):  # that of the listing is closed
                os.fstat(number)
                os.dup2(nowhere, number)
        exec(command[-1])
    finally:
        os._exit(1)


def print_to(log: Path) -> None:
    """Add everything that this process prints from here on to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
