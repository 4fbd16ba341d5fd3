"""
Putting an SAE's reconstruction into a language model, as hooks of TransformerLens.

The splice follows SAELens's `run_evals`: the reconstruction replaces the activations at every position except
those of ignored tokens; zero ablation, the other end of the scale, zeroes every position.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sae_lens import SAE

Hook = Callable[..., torch.Tensor]


def keep_mask(tokens: torch.Tensor, ignore_tokens: Sequence[int]) -> torch.Tensor:
    """Whether each position of token ids of shape (batch, context) takes part, bool."""
    return ~torch.isin(tokens, torch.tensor(list(ignore_tokens), dtype=tokens.dtype, device=tokens.device))


def splice_hook(sae: SAE[Any], keep: torch.Tensor, max_norm: float = math.inf) -> Hook:
    """
    The hook that replaces activations by their reconstruction where `keep`, of shape (batch, context), is true.

    Activations of a norm above `max_norm` stay as they are.
    """

    def splice(activations: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001 (TransformerLens's name)
        # Attention hooks have a head dimension after the position; the SAE sees the heads side by side.
        flat = activations.flatten(2)
        reconstruction = sae.decode(sae.encode(flat.to(sae.device, sae.dtype))).to(flat)
        replace = keep.to(flat.device) & (flat.norm(dim=-1) <= max_norm)
        replaced = torch.where(replace[..., None], reconstruction, flat)
        return replaced.reshape(activations.shape)

    return splice


def zero_hook(activations: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001 (TransformerLens's name)
    """The hook that replaces activations by zeros."""
    return torch.zeros_like(activations)
