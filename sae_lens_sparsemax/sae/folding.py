"""From training parameters to the two linear maps of the inference SAE, rounded once.

W_enc = W_q W_kᵀ Cᵀ (d × M), b_enc = 0, W_dec = C W_v (M × d); for the MLP structure they are the parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

PREFIX = "dictionary."
CROSS_ATTENTION, MLP = {"concepts", "W_k", "W_v"}, {"W_enc", "b_enc", "W_dec"}
TRAINING_STATE = ("gate_scale", "b_dec_is_initialised")


def is_training_checkpoint(state_dict: dict[str, Any]) -> bool:
    """Whether these are the weights of a training SAE."""
    return any(name.startswith(PREFIX) for name in state_dict)


def fold_checkpoint(state_dict: dict[str, Any]) -> None:
    """Turn a training state dict into an inference one, in place.

    The gate scale is dropped: the config file beside the weights carries it in full precision. The products are made
    in float64 and rounded to the dtype of the weights.

    Args:
        state_dict: weights of a training SAE, with the prefix "dictionary.".

    Raises:
        ValueError: naming the tensors that are missing.
    """
    own = {name.removeprefix(PREFIX): value for name, value in state_dict.items() if name.startswith(PREFIX)}
    is_mlp = not own.keys() & CROSS_ATTENTION
    if missing := sorted((MLP if is_mlp else CROSS_ATTENTION) - own.keys()):
        raise ValueError(f"this training checkpoint is missing {', '.join(PREFIX + name for name in missing)}")
    folded = {name: value.contiguous() for name, value in own.items()} if is_mlp else _fold_cross_attention(own)
    for name in [PREFIX + name for name in own] + list(TRAINING_STATE):
        state_dict.pop(name, None)
    state_dict.update(folded)


@torch.no_grad()
def _fold_cross_attention(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    concepts = own["concepts"]
    wide = concepts.double()
    query_map = own["W_k"].double().T
    if "W_q" in own:
        query_map = own["W_q"].double() @ query_map
    return {
        "W_enc": (query_map @ wide.T).to(concepts.dtype).contiguous(),
        "b_enc": concepts.new_zeros(concepts.shape[0]),
        "W_dec": (wide @ own["W_v"].double()).to(concepts.dtype).contiguous(),
    }


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
