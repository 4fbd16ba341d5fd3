"""What folds into plain linear maps, exactly, and what does not and is refused.

Training parameters fold into W_enc = W_q W_kᵀ Cᵀ (d × M) and W_dec = C W_v (M × d), rounded once, each projection a
multiple of the parameter of its name, and b_enc, zeros where none was learnt; for the MLP structure they are the
parameters. A normalisation of the activations folds into the dictionary.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import nn

from sae_lens_sparsemax.sae.dictionaries import Dictionary
from sae_lens_sparsemax.sae.passes import pass_maps
from sae_lens_sparsemax.sae.weights import PREFIX, drop_old_gate_scale

CROSS_ATTENTION, MLP = {"concepts", "W_k", "W_v"}, {"W_enc", "b_enc", "W_dec"}
# Concepts that are folded at a time, in float64.
_CONCEPTS_OF_A_BLOCK = 2**15


def fold_checkpoint(state_dict: dict[str, Any], activation_floor: float = 0.0, map_lr_scale: float = 1.0) -> None:
    """Turn a training state dict into an inference one, in place.

    The products are made in float64 and rounded to the dtype of the weights. What only training needs is dropped.

    Args:
        state_dict: weights of a training SAE, with the prefix "dictionary.".
        activation_floor: what its mean activations are multiplied with to make thresholds.
        map_lr_scale: what its W_q, W_k, W_v and turns are multiplied with to make the maps.

    Raises:
        ValueError: naming the tensors that are missing.
    """
    own = {name.removeprefix(PREFIX): value for name, value in state_dict.items() if name.startswith(PREFIX)}
    is_mlp = not own.keys() & CROSS_ATTENTION
    if missing := sorted((MLP if is_mlp else CROSS_ATTENTION) - own.keys()):
        raise ValueError(f"this training checkpoint is missing {', '.join(PREFIX + name for name in missing)}")
    if is_mlp:
        folded = {name: value.contiguous() for name, value in own.items()}
    else:
        folded = _fold_cross_attention(own, map_lr_scale)
    for name in (*(PREFIX + name for name in own), "b_dec_is_initialised"):
        state_dict.pop(name, None)
    drop_old_gate_scale(state_dict)
    state_dict.update(folded)
    if "turns" in state_dict:
        turns = state_dict.pop("turns")
        state_dict["W_pass"] = pass_maps(turns.double(), map_lr_scale).to(turns.dtype)
    if "mean_acts" in state_dict:
        state_dict["threshold"] = activation_floor * state_dict.pop("mean_acts")


@torch.no_grad()
def _fold_cross_attention(own: dict[str, torch.Tensor], map_lr_scale: float) -> dict[str, torch.Tensor]:
    maps = {name: own[name].double() * map_lr_scale for name in ("W_q", "W_k", "W_v") if name in own}
    concepts, output_map, query_map = own["concepts"], maps["W_v"], maps["W_k"].T
    if "W_q" in maps:
        query_map = maps["W_q"] @ query_map
    n, d = concepts.shape
    W_enc, W_dec = concepts.new_empty(d, n), concepts.new_empty(n, d)
    for first in range(0, n, _CONCEPTS_OF_A_BLOCK):
        block = slice(first, first + _CONCEPTS_OF_A_BLOCK)
        wide = concepts[block].double()
        W_enc[:, block], W_dec[block] = query_map @ wide.T, wide @ output_map
    return {"W_enc": W_enc, "b_enc": own.get("b_enc", concepts.new_zeros(n)), "W_dec": W_dec}


@torch.no_grad()
def fold_scaling(dictionary: Dictionary, b_dec: nn.Parameter, factor: float, unit_norm_query: bool) -> None:
    """Let a training SAE take raw activations x in place of factor · x; the supports do not change."""
    # With unit-norm queries the scale cancels in the scores and stands in ‖x‖ already.
    if not unit_norm_query:
        identity = torch.eye(len(b_dec), dtype=torch.float64, device=b_dec.device)
        dictionary.fold_input_map(identity * factor)
        dictionary.fold_output_map(identity / factor)
    b_dec.data /= factor


@torch.no_grad()
def fold_threshold_scaling(threshold: torch.Tensor | None, factor: float, unit_norm_query: bool) -> None:
    """Let (M,) thresholds, or what they are made of, be those of activations of raw inputs in place of factor · x."""
    # Of raw queries the map of the input takes the factor up, and activations stay what they were.
    if threshold is not None and unit_norm_query:
        threshold.div_(factor)


@torch.no_grad()
def fold_whitening(
    dictionary: Dictionary,
    b_dec: nn.Parameter,
    mean: torch.Tensor,
    matrix: torch.Tensor,
    inverse: torch.Tensor,
    b_dec_is_subtracted: bool,
) -> None:
    """Let a training SAE with raw queries take activations x in place of whitened ones, (x − mean) · matrix.

    Args:
        mean: (d,). matrix and its inverse: (d, d).
        b_dec_is_subtracted: whether scores are made from x − b_dec, so that b_dec takes the mean up.

    Raises:
        NotImplementedError: there is no bias that could take the mean up; nothing has been changed then.
    """
    mean, matrix, inverse = (tensor.to(b_dec.device, torch.float64) for tensor in (mean, matrix, inverse))
    if not b_dec_is_subtracted:
        dictionary.fold_input_shift(mean @ matrix)
    dictionary.fold_input_map(matrix)
    dictionary.fold_output_map(inverse)
    b_dec.data.copy_(b_dec.double() @ inverse + mean)


@torch.no_grad()
def fold_pass_maps(maps: nn.Parameter | None, matrix: torch.Tensor, inverse: torch.Tensor) -> None:
    """Let further passes read residuals r in place of r · matrix: each map becomes matrix · map · inverse.

    Takes W_pass, or the turns that it is made of with the identity, which stays what it is.
    """
    if maps is not None:
        matrix, inverse = (tensor.to(maps.device, torch.float64) for tensor in (matrix, inverse))
        maps.copy_(matrix @ maps.double() @ inverse)


def refuse_whitened_norm(unit_norm_query: bool) -> None:
    """Whitening cannot be folded behind x/‖x‖."""
    if unit_norm_query:
        raise NotImplementedError(
            "a whitening cannot be folded into a sparsemax SAE with unit_norm_query=True: its norms are those of "
            "whitened activations; train with unit_norm_query=False or without covariance_whitening"
        )


def refuse_W_dec_norm() -> NoReturn:
    """In training activations have no scale of their own, and in scores decoder norms would change the supports."""
    raise NotImplementedError(
        "decoder norms cannot be folded into a sparsemax SAE in training, whose activations have no output scale; fold "
        "those of the saved SAE: SAE.load_from_disk(folder, fold_W_dec_norm=True)"
    )
