"""Thresholds of activations: what is weak is noise more often than not, and is dropped.

In training a concept's threshold is `activation_floor` times a mean activation, a running mean over batches of what was
found before anything is dropped; an SAE for inference holds the product. Either it is the mean of the concept's own
activations, of which no concept dies, since the mean follows it; or the activation at which it contributes as much as
concepts do on average, so that whatever explains least is dropped, of whichever token and concept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sae_lens_sparsemax.attention.rows import column_sums
from sae_lens_sparsemax.attention.sparse import entries
from sae_lens_sparsemax.attention.traceable import wide
from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig

# Share of the newest batch in the mean.
_RATE = 0.03


def mean_activations(cfg: SparsemaxTrainingSAEConfig, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """(M,) zeros, which drop nothing until the first batch is seen, or None where no activation is too weak."""
    return torch.zeros(cfg.d_sae, dtype=dtype, device=device) if cfg.activation_floor else None


@torch.no_grad()
def follow_mean(
    mean: torch.Tensor,
    acts: torch.Tensor,
    total: Callable[[torch.Tensor, bool], torch.Tensor],
    dictionary: torch.Tensor | None,
) -> None:
    """Move (M,) means of positive activations, in place, towards those of a batch.

    The first mean of a concept is taken as it is; concepts without an activation keep theirs.

    Args:
        mean: (M,), zero where none was seen.
        acts: (N, M) activations, sparse COO or dense.
        total: adds up over ranks: sums of own concepts, or, where it is told so, of all.
        dictionary: (M, d) values of the concepts, if the mean is the activation at which a concept contributes,
            activation times the value's norm, as much as all concepts do on average.
    """
    acts = acts if acts.is_sparse else acts.reshape(-1, len(mean)).to_sparse()
    # Sums of half-precision numbers would stand still; what comes out is rounded once.
    before = wide(mean)
    concept, values = acts.indices()[1], acts.values().to(before.dtype).clamp_min(0)
    found = (values > 0).to(before.dtype)
    if dictionary is None:
        sums = column_sums(concept, torch.stack([values, found], 1), len(mean))
        batch, count = total(sums, False).unbind(1)
        batch = batch / count.clamp_min(1)
    else:
        norm = torch.linalg.vector_norm(dictionary, dim=-1, dtype=before.dtype).clamp_min(
            torch.finfo(before.dtype).tiny
        )
        sums = torch.stack([(values * norm[concept]).sum(), found.sum()])
        contributed, count = total(sums, True).unbind(0)
        # A value of almost no norm contributes nothing, whatever its activation.
        batch = (contributed / count.clamp_min(1) / norm).clamp_max(torch.finfo(mean.dtype).max)
    moved = torch.where(before > 0, before + _RATE * (batch - before), batch)
    mean.copy_(torch.where(count > 0, moved, before))


def above(acts: torch.Tensor, threshold: torch.Tensor | None) -> torch.Tensor:
    """(..., M) dense or (N, M) sparse COO activations, without those that do not exceed their (M,) threshold."""
    if threshold is None:
        return acts
    if not acts.is_sparse:
        return torch.where(acts > threshold, acts, torch.zeros_like(acts))
    return entries(acts, acts.values() > threshold[acts.indices()[1]])
