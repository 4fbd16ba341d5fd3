"""What a model goes on with at an SAE's hook: a reconstruction, zeros, or the same with some concepts changed.

An `Edit` is a function of what the SAE reads; `edit_hook` makes it a hook for `run_with_hooks` of a language or a
vision model. The splice follows SAELens's `run_evals`: the reconstruction replaces the activations at every position
that the SAE reads; zero ablation, the other end of the scale, is `edit_hook(torch.zeros_like)`, at every position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from sae_lens import SAE

from sae_lens_sparsemax.models.encoding import evaluation_mode

Edit = Callable[[torch.Tensor], torch.Tensor]
"""Takes activations of shape (batch, positions, d_in), heads side by side, and returns what the model goes on with."""

Hook = Callable[..., torch.Tensor]
"""A hook function of TransformerLens: activations and their hook point to activations."""


class Change(NamedTuple):
    """What becomes of one concept's activation f: `factor` · f + `add`, at every token that the SAE reads."""

    factor: float = 1.0
    """0 switches the concept off, 2 doubles it where it is active."""
    add: float = 0.0
    """Also where it is not active, in the units of activations."""


def edit_hook(edit: Edit, positions: slice | torch.Tensor = slice(None), max_norm: float = math.inf) -> Hook:
    """The hook function that applies an edit.

    Args:
        edit: what to do; it is given the activations at `positions`, or all of them with a mask.
        positions: which the edit replaces: a slice, or a bool mask of shape (positions,) or (batch, positions).
        max_norm: activations of a larger norm stay as they are.
    """

    def hook_function(activations: torch.Tensor, hook: Any = None) -> torch.Tensor:  # noqa: ARG001 (TransformerLens's name)
        part = positions if isinstance(positions, slice) else slice(None)
        # Attention hooks have a head dimension after the position; the SAE sees the heads side by side.
        read = activations[:, part].flatten(2)
        edited = edit(read).to(read)
        if not isinstance(positions, slice) or max_norm < math.inf:
            replace = read.norm(dim=-1) <= max_norm
            replace = replace if isinstance(positions, slice) else replace & positions.to(read.device)
            edited = torch.where(replace[..., None], edited, read)
        changed = activations.clone()
        changed[:, part] = edited.reshape(activations[:, part].shape)
        return changed

    return hook_function


def reconstruct(sae: SAE[Any]) -> Edit:
    """The edit that replaces activations by their reconstruction."""

    def edit(activations: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), evaluation_mode(sae):
            sae_in = activations.flatten(0, 1).to(sae.device, sae.dtype)
            return sae.decode(sae.encode(sae_in)).reshape(activations.shape)

    return edit


def change_concepts(sae: SAE[Any], changes: Mapping[int, Change]) -> Edit:
    """The edit that switches concepts off, weakens, strengthens or adds them; what the SAE misses stays as it is.

    The model goes on with x + decode(f') - decode(f), so a change of nothing changes nothing, however good the SAE.
    But: an activation changes at its own layer alone. Later layers may compute the concept again.

    Args:
        sae: any SAELens SAE.
        changes: from concept to change.

    Raises:
        ValueError: a concept that the SAE has not, or a number that is not finite.
    """
    for concept, change in changes.items():
        if not 0 <= concept < sae.cfg.d_sae:
            raise ValueError(f"There is no concept {concept}; concepts are numbered from 0 to {sae.cfg.d_sae - 1}.")
        if not all(map(math.isfinite, change)):
            raise ValueError(f"Concept {concept} cannot be changed by factor {change.factor} and {change.add} added.")

    def edit(activations: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), evaluation_mode(sae):
            before = sae.encode(activations.flatten(0, 1).to(sae.device, sae.dtype))
            before = before.to_dense() if before.is_sparse else before
            after = before.clone()
            for concept, change in changes.items():
                after[:, concept] = change.factor * before[:, concept] + change.add
            difference = sae.decode(after) - sae.decode(before)
        return activations + difference.reshape(activations.shape).to(activations)

    return edit
