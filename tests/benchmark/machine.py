"""The machine that figures are taken on: its name in a few words, and the options that say how it is used."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from sae_lens_sparsemax.attention import screening
from sae_lens_sparsemax.cli.main import keep_freed_memory

_SCREENING = {"auto": None, "always": True, "never": False}


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """The options that `use_machine` takes."""
    parser.add_argument(
        "--screening",
        choices=list(_SCREENING),
        default="auto",
        help="whether a bfloat16 product finds candidates first (auto: where it is known to pay)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")


def use_machine(device: str, screened: str, threads: int | None) -> None:
    """Compute as the options say on `device`, and keep freed memory as the command line does."""
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    screening.SCREEN[torch.device(device).type] = _SCREENING[screened]


def machine(device: str) -> str:
    """Processor or GPU, threads and torch's version."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
