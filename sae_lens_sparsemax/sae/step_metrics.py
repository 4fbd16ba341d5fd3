"""What a training step reports of its batch, computed only if the step is logged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Metric = torch.Tensor | float | int | Callable[[], torch.Tensor | float | int]


def tokens_l0(feature_acts: torch.Tensor) -> torch.Tensor:
    """(N,) int64, non-zero activations per token of (N, d_sae) activations, dense or sparse COO."""
    if not feature_acts.is_sparse:
        return feature_acts.count_nonzero(-1).flatten()
    coalesced = feature_acts.coalesce()
    rows = coalesced.indices()[0][coalesced.values() != 0]
    return torch.bincount(rows, minlength=feature_acts.shape[0])


def batch_metrics(feature_acts: torch.Tensor, tau: torch.Tensor | None, score_std: torch.Tensor) -> dict[str, Any]:
    """Percentiles of L0 over tokens, mean τ in units of g·z, and the standard deviation of the scores.

    Args:
        feature_acts: (N, d_sae) of the batch. tau: (N,) thresholds, or None where none were computed.
        score_std: standard deviation of the scores of a sample of tokens.

    Returns:
        Values, and functions of no arguments that SAELens calls when it logs.
    """
    feature_acts = feature_acts.detach()
    metrics: dict[str, Metric] = {
        f"l0_p{percent}": partial(_l0_quantile, feature_acts, percent / 100) for percent in (5, 50, 95)
    }
    metrics["score_std"] = score_std.detach()
    if tau is not None:
        metrics["tau"] = tau.mean
    return metrics


def _l0_quantile(feature_acts: torch.Tensor, quantile: float) -> float:
    return torch.quantile(tokens_l0(feature_acts).float(), quantile).item()
