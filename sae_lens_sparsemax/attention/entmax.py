"""Whose scores are worth their place: the support of α-entmax for α > 2, up to TopK at infinity.

α-entmax (Peters, Niculae & Martins 2019) keeps the scores above the τ with Σ max(z_i − τ, 0)^β = b, β = 1/(α − 1).
At α = 2 that is sparsemax, where one large score can spend the whole budget b; a smaller β makes large scores cheaper,
and at α = ∞ every concept costs 1 whatever its score: TopK with k = b, which keeps all that tie with the k-th.

Nobody needs τ to decide. The cost of a cut at t, Σ max(z_j − t, 0)^β, falls with t, so a score z is in the support
exactly if a cut at z costs less than b; a cut that costs less settles everything above it, one that costs more
everything below it. Cutting at the mean of what is undecided halves it each time, whatever its scale.
"""

from __future__ import annotations

import math

import torch

from sae_lens_sparsemax.attention.rows import row_offsets

# A bound need not be tight: after this many cuts only a handful of a row's chunk maxima are undecided.
BOUND_CUTS = 8
# A float32 cost of n terms is trusted to be at least b when it exceeds it by this share.
COST_MARGIN = 1e-4
# float32 differences from the row's maximum are off by at most this share of the largest among them.
DIFFERENCE_MARGIN = 1e-6
MAX_NEWTON_STEPS = 100


def exponent(alpha: float) -> float:
    """β = 1/(α − 1), what scores above the threshold cost: 1 for sparsemax, 0 for TopK."""
    return 1 / (alpha - 1)


def lower_bound(shifted: torch.Tensor, budget: float, alpha: float) -> torch.Tensor:
    """(N, 1) float64 a number below each row's τ, from a subset of its scores.

    Fewer scores cost less, so a cut that costs b among them costs b among all: their support contains what is left of
    the whole row's.

    Args:
        shifted: (N, C) scores with the maximum of their row subtracted, the maximum among them; −inf for padding.
        budget: b. alpha: α > 2.

    Returns:
        The bounds, less the row maximum too; −inf where all scores of the subset are in its support.
    """
    beta = exponent(alpha)
    low = torch.full_like(shifted[:, :1], -torch.inf)
    high = torch.zeros_like(low)
    below = torch.empty_like(shifted)
    for _ in range(BOUND_CUTS):
        undecided = (shifted > low) & (shifted < high)
        count = undecided.sum(-1, keepdim=True)
        # Shares first: the sum of scores near the largest number would be none.
        cut = torch.where(undecided, shifted, 0).div_(count.clamp(min=1)).sum(-1, keepdim=True)
        costs_more = _cost(torch.sub(shifted, cut, out=below), beta) > (1 + COST_MARGIN) * budget
        open_ = count > 0
        low = torch.where(open_ & costs_more, cut, low)
        high = torch.where(open_ & ~costs_more, cut, high)
    return low.double() * (1 + DIFFERENCE_MARGIN)


def in_support(
    values: torch.Tensor, row: torch.Tensor, row_max: torch.Tensor, budget: float, alpha: float
) -> torch.Tensor:
    """Settle a superset of the supports, in float64.

    Args:
        values: (nnz,) candidate scores in row order, every row's support among them. row: (nnz,) their rows.
        row_max: (N,) float64 row maxima. budget: b. alpha: α > 2.

    Returns:
        (nnz,) bool, whether each is in the support of its row.
    """
    shifted = (values.double() - row_max[row]).clamp_(min=torch.finfo(torch.float64).min)
    offsets = row_offsets(row, len(row_max))
    # The maximum costs nothing, and is in every support.
    keep = shifted == 0
    undecided = ~keep
    while bool(undecided.any()):
        cut = _mean_of(shifted, undecided, offsets)
        at = cut[row]
        cost = torch.segment_reduce(_terms(shifted - at, exponent(alpha)), "sum", offsets=offsets)
        affordable = (cost < budget)[row]
        keep |= undecided & affordable & (shifted >= at)
        undecided &= torch.where(affordable, shifted < at, shifted > at)
    return keep


def excess(
    shifted: torch.Tensor, offsets: torch.Tensor, row: torch.Tensor, budget: float, alpha: float
) -> torch.Tensor:
    """(nnz,) z − τ on given supports, each positive: what `probabilities` are made of.

    With z_min the smallest score of a support, z − τ = (z − z_min) + s, and s solves Σ (z_i − z_min + s)^β = b. The
    left side is concave in s, so Newton from below never passes the root; (D/n)^(1/β) lies below it, where D is what
    a cut at z_min leaves of b, since no term can grow by more than s^β.

    Args:
        shifted: (nnz,) float64 scores of the supports, in row order, less their row's maximum.
        offsets: (N + 1,) where rows begin. row: (nnz,) their rows. budget: b. alpha: 2 < α < ∞.
    """
    beta = exponent(alpha)
    above = shifted - torch.segment_reduce(shifted, "min", offsets=offsets, initial=0.0)[row]
    left = budget - torch.segment_reduce(above.pow(beta), "sum", offsets=offsets)
    s = (left.clamp_min(0) / offsets.diff().clamp_min(1)).pow(1 / beta)
    for _ in range(MAX_NEWTON_STEPS):
        over = above + s[row]
        missing = budget - torch.segment_reduce(over.pow(beta), "sum", offsets=offsets)
        slope = torch.segment_reduce(beta * over.pow(beta - 1), "sum", offsets=offsets)
        step = torch.where(slope.isfinite(), missing / slope, 0)
        s = s + step.clamp_min(0)
        if not bool((step > 1e-15 * s).any()):
            break
    return above + s[row]


def largest_difference(budget: float, alpha: float) -> float:
    """How far below its row's maximum a score can be and still be in the support: the maximum alone would cost b."""
    if math.isinf(alpha):
        return math.inf
    power = (alpha - 1) * math.log(budget)
    # A little more, so that rounding leaves nothing out that a closer look would keep.
    return math.exp(power) * (1 + 1e-9) if power < 700 else math.inf


def _cost(below: torch.Tensor, beta: float) -> torch.Tensor:
    """(N, 1) Σ max(z − t, 0)^β; overwrites (N, C) z − t."""
    return _terms(below, beta).sum(-1, keepdim=True)


def _terms(below: torch.Tensor, beta: float) -> torch.Tensor:
    if beta == 0:
        return below.sign_().clamp_(min=0)
    below.clamp_(min=0)
    return below.sqrt_() if beta == 0.5 else below.pow_(beta)


def _mean_of(values: torch.Tensor, chosen: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """(N,) mean of each row's chosen values, between their least and largest; 0 where none is."""
    weight = chosen.double()
    count = torch.segment_reduce(weight, "sum", offsets=offsets)
    total = torch.segment_reduce(torch.where(chosen, values, 0.0), "sum", offsets=offsets)
    mean = total / count.clamp_min(1)
    # Rounding may put the mean of equal values beside all of them, and nothing would be settled.
    least = torch.segment_reduce(torch.where(chosen, values, torch.inf), "min", offsets=offsets, initial=torch.inf)
    largest = torch.segment_reduce(torch.where(chosen, values, -torch.inf), "max", offsets=offsets, initial=-torch.inf)
    return torch.where(count > 0, torch.maximum(torch.minimum(mean, largest), least), 0.0)
