"""Weights to and from disk: whole files only, and a clear word when they are not the ones asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def save_atomically(path: str | Path, save: Callable[[Path], tuple[Path, Path]]) -> tuple[Path, Path]:
    """Run `save(folder)` on a folder beside `path` and move its files into `path` once all are written.

    A full disk or an interruption leaves what was in `path` as it was.

    Args:
        path: folder to save to; made if missing, other files in it stay.
        save: writes its files into the folder it is given and returns the paths of weights and config.

    Returns:
        The paths of weights and config in `path`.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=path) as scratch:
        weights, config = save(Path(scratch))
        for file in sorted(Path(scratch).iterdir()):
            file.replace(path / file.name)
    return path / weights.name, path / config.name


def check_weights(state_dict: dict[str, Any], module: nn.Module) -> None:
    """Refuse a state dict that is not exactly what the module holds.

    Raises:
        ValueError: naming the tensors that are missing, unknown, or of another shape.
    """
    wanted = module.state_dict()
    problems = []
    if missing := sorted(wanted.keys() - state_dict.keys()):
        problems.append(f"missing {', '.join(missing)}")
    if unknown := sorted(state_dict.keys() - wanted.keys()):
        problems.append(f"unknown {', '.join(unknown)}")
    problems += [
        f"{name} has shape {_shape(state_dict[name])}, not {_shape(wanted[name])}"
        for name in sorted(wanted.keys() & state_dict.keys())
        if _shape(state_dict[name]) != _shape(wanted[name])
    ]
    if problems:
        raise ValueError(f"these weights do not fit {type(module).__name__}: {'; '.join(problems)}")


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
