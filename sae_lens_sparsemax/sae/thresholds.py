"""Thresholds of activations: what is weak for its concept is noise more often than not, and is dropped.

In training a concept's threshold is `activation_floor` times the mean of its activations before anything is dropped, a
running mean over batches; an SAE for inference holds the product. No concept dies of it, since its mean follows it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sae_lens_sparsemax.attention.rows import column_sums
from sae_lens_sparsemax.attention.sparse import entries
from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig

# Share of the newest batch in the mean.
_RATE = 0.03


def mean_activations(cfg: SparsemaxTrainingSAEConfig, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """(M,) zeros, which drop nothing until the first batch is seen, or None where no activation is too weak."""
    return torch.zeros(cfg.d_sae, dtype=dtype, device=device) if cfg.activation_floor else None


@torch.no_grad()
def follow_mean(mean: torch.Tensor, acts: torch.Tensor, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Move (M,) means of positive activations, in place, towards those of a batch, (N, M) sparse COO or dense.

    The first mean of a concept is taken as it is; concepts without an activation keep theirs. `total` adds up
    over ranks that hold the same concepts.
    """
    acts = acts if acts.is_sparse else acts.reshape(-1, len(mean)).to_sparse()
    # Sums of half-precision numbers would stand still; what comes out is rounded once.
    wide = mean.to(torch.promote_types(mean.dtype, torch.float32))
    values = acts.values().to(wide.dtype)
    sums = column_sums(acts.indices()[1], torch.stack([values.clamp_min(0), (values > 0).to(wide.dtype)], 1), len(mean))
    batch, count = total(sums).unbind(1)
    batch = batch / count.clamp_min(1)
    moved = torch.where(wide > 0, wide + _RATE * (batch - wide), batch)
    mean.copy_(torch.where(count > 0, moved, wide))


def above(acts: torch.Tensor, threshold: torch.Tensor | None) -> torch.Tensor:
    """(..., M) dense or (N, M) sparse COO activations, without those that do not exceed their (M,) threshold."""
    if threshold is None:
        return acts
    if not acts.is_sparse:
        return torch.where(acts > threshold, acts, torch.zeros_like(acts))
    return entries(acts, acts.values() > threshold[acts.indices()[1]])
