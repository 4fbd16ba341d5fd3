"""Processes of their own, forked from a server that has imported everything and computed nothing.

torch's threads do not outlive a fork, so one that has used them is none to fork from; and no start waits for imports.
"""

import multiprocessing
import os
from pathlib import Path

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(
    ["sae_lens_sparsemax.cli.main", "sae_lens_sparsemax.training.text_runner", "datasets", "transformer_lens"]
)


def print_to(log: Path) -> None:
    """Add everything that this process prints from here on to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
