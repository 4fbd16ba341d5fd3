"""Concepts switched off, weakened, strengthened or added, while everything the SAE misses stays as it is.

The model goes on with x + decode(f') - decode(f), so a change of nothing changes nothing, however good the SAE.
But: an activation changes at its own layer alone. Later layers may compute the concept again.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from sae_lens import SAE

from sae_lens_sparsemax.models.encoding import evaluation_mode


class Change(NamedTuple):
    """What becomes of one concept's activation f: `factor` · f + `add`, at every token that the SAE reads."""

    factor: float = 1.0
    """0 switches the concept off, 2 doubles it where it is active."""
    add: float = 0.0
    """Also where it is not active, in the units of activations."""


Hook = Callable[..., torch.Tensor]


def switch_hook(sae: SAE[Any], changes: Mapping[int, Change], is_read: torch.Tensor | slice) -> Hook:
    """A hook function, for `run_with_hooks`, that changes some concepts.

    Args:
        sae: any SAELens SAE.
        changes: from concept to change.
        is_read: which positions the SAE reads, `(n_positions,)` bool or a slice; others stay.

    Raises:
        ValueError: a concept that the SAE has not, or a number that is not finite.
    """
    for concept, change in changes.items():
        if not 0 <= concept < sae.cfg.d_sae:
            raise ValueError(f"There is no concept {concept}; concepts are numbered from 0 to {sae.cfg.d_sae - 1}.")
        if not all(torch.tensor(value).isfinite() for value in change):
            raise ValueError(f"Concept {concept} cannot be changed by factor {change.factor} and {change.add} added.")

    def switch(activations: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001 (TransformerLens's name)
        tokens = activations[:, is_read]
        x = tokens.flatten(2).to(sae.device, sae.dtype)
        with torch.no_grad(), evaluation_mode(sae):
            before = sae.encode(x.flatten(0, 1))
            before = before.to_dense() if before.is_sparse else before
            after = before.clone()
            for concept, change in changes.items():
                after[:, concept] = change.factor * before[:, concept] + change.add
            difference = sae.decode(after) - sae.decode(before)
        changed = activations.clone()
        changed[:, is_read] = tokens + difference.reshape(tokens.shape).to(tokens)
        return changed

    return switch
