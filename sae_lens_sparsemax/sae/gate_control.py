"""What a training step reports of its batch, and how the gate scale follows it to hold the mean L0 at a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

Metric = torch.Tensor | float | int | Callable[[], torch.Tensor | float | int]

# No useful gate lies outside: at 1e-6 every concept is selected, at 1e6 one.
MIN_GATE_SCALE, MAX_GATE_SCALE = 1e-6, 1e6


def next_gate_scale(gate_scale: float, l0: float, target_l0: float, rate: float) -> float:
    """g for the next training step: log g moves by rate · log(L0 / target), the logarithm held within ±1.

    A larger g spreads the scores that sparsemax sees and so selects fewer concepts; working in logarithms makes one
    rate serve any scale, and the clamp keeps the dense supports of the first steps from throwing g far off.

    Args:
        gate_scale: g now.
        l0: mean concepts per token in this batch.
        target_l0: what it should be.
        rate: step size.

    Returns:
        The new g, positive.
    """
    error = math.log(max(l0, 1e-3) / target_l0)
    moved = gate_scale * math.exp(rate * max(-1.0, min(1.0, error)))
    return max(MIN_GATE_SCALE, min(MAX_GATE_SCALE, moved))


def batch_metrics(
    l0: torch.Tensor,
    tau: Callable[[], torch.Tensor] | None,
    score_std: torch.Tensor,
    pass_counts: Sequence[torch.Tensor] = (),
) -> dict[str, Metric]:
    """Percentiles of L0 over tokens, mean τ in units of g·z, and the standard deviation of the scores.

    Args:
        l0: (N,) active concepts per token.
        tau: makes (N,) thresholds, or None where none were computed.
        score_std: standard deviation of the scores of a sample of tokens.
        pass_counts: (N,) what each pass selected, reported where there are several.

    Returns:
        Values, and functions of no arguments, which SAELens calls when it logs and only then.
    """
    metrics: dict[str, Metric] = {f"l0_p{percent}": partial(_quantile, l0, percent / 100) for percent in (5, 50, 95)}
    metrics["score_std"] = score_std.detach()
    if len(pass_counts) > 1:
        metrics |= {f"l0_pass_{n}": partial(_mean, counts) for n, counts in enumerate(pass_counts, 1)}
    if tau is not None:
        metrics["tau"] = lambda: tau().mean()
    return metrics


def _quantile(counts: torch.Tensor, quantile: float) -> float:
    return torch.quantile(counts.float(), quantile).item()


def _mean(counts: torch.Tensor) -> float:
    return counts.float().mean().item()
