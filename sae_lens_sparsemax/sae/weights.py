"""Weights on their way between files and SAEs: which kind they are, whether they fit, how they lie in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import SAE_CFG_FILENAME
from torch import nn

from sae_lens_sparsemax.files import read_object, reading, refuse_not_finite

PREFIX = "dictionary."


def is_training_checkpoint(state_dict: dict[str, Any]) -> bool:
    """Whether these are the weights of a training SAE."""
    return any(name.startswith(PREFIX) for name in state_dict)


def prepare_for_training(state_dict: dict[str, Any], module: nn.Module) -> None:
    """Make loaded tensors those of a new training SAE, in place: layout and flag as it has them; values stay.

    Raises:
        ValueError: these are no training checkpoint of the module's structure; names what is missing or unknown.
    """
    if not is_training_checkpoint(state_dict) and {"W_enc", "W_dec"} <= state_dict.keys():
        raise ValueError(
            f"cannot load into {type(module).__name__}: these are folded weights (W_enc, W_dec) of an inference SAE "
            "or of another architecture; load them with SAE.load_from_disk, or name a training checkpoint"
        )
    drop_old_gate_scale(state_dict)
    check_weights(state_dict, module)
    # SAELens's loaders turn every tensor into the dtype asked for, the flag too.
    state_dict["b_dec_is_initialised"] = state_dict["b_dec_is_initialised"].bool()
    if PREFIX + "W_enc" in state_dict:
        state_dict[PREFIX + "W_enc"] = by_concept(state_dict[PREFIX + "W_enc"])


def by_concept(W_enc: torch.Tensor) -> torch.Tensor:
    """(d, M) as SAELens has it, but concept by concept in memory, since rows of W_encᵀ are what is gathered."""
    return W_enc.T.contiguous().T


def prepare_for_saving(state_dict: dict[str, Any]) -> None:
    """Files hold contiguous tensors, whatever layout computing prefers; in place."""
    for name, value in state_dict.items():
        state_dict[name] = value.contiguous()


def drop_old_gate_scale(state_dict: dict[str, Any]) -> None:
    """Version 0.1 wrote the gate scale among the weights too; the config beside them has it in full precision."""
    state_dict.pop("gate_scale", None)


def saved_gate_scale(folder: Path | str) -> float:
    """The gate scale of the SAE saved in a folder.

    Raises:
        ValueError: its config is missing, damaged or of another architecture.
    """
    path = Path(folder) / SAE_CFG_FILENAME
    with reading(path):
        return float(read_object(path)["gate_scale"])


def check_weights(state_dict: dict[str, Any], module: nn.Module) -> None:
    """Refuse a state dict that is not exactly what the module holds, or holds numbers that are not finite.

    Raises:
        ValueError: naming the tensors that are missing, unknown, of another shape, or not finite.
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
    refuse_not_finite(state_dict)


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
