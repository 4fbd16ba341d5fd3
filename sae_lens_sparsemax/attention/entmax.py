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
MAX_NEWTON_STEPS = 100


def exponent(alpha: float) -> float:
    """β = 1/(α − 1), what scores above the threshold cost: 1 for sparsemax, 0 for TopK."""
    return 1 / (alpha - 1)


def whole_budget(budget: float, alpha: float) -> float:
    """The budget; for TopK, where concepts cost 1, the k that it pays for, rounded up."""
    # A k that was kept as 1/k comes back a little beside itself.
    return float(math.ceil(budget * (1 - 1e-9))) if math.isinf(alpha) else budget


def lower_bound(scores: torch.Tensor, row_max: torch.Tensor, budget: float, alpha: float) -> torch.Tensor:
    """(N, 1) a number that each row's support exceeds, from a subset of its scores.

    Fewer scores cost less, so a cut that costs b among them costs b among all. A difference of two floats is rounded
    once, relative to itself, so the costs are as exact as their sum wherever the scores lie.

    Args:
        scores: (N, C), the maximum of the row among them; −inf for padding. row_max: (N, 1).
        budget: b. alpha: α > 2.

    Returns:
        The bounds; −inf where no cut among the subset costs b.
    """
    beta = exponent(alpha)
    low, high = torch.full_like(row_max, -torch.inf), row_max
    below = torch.empty_like(scores)
    for _ in range(BOUND_CUTS):
        undecided = (scores > low) & (scores < high)
        count = undecided.sum(-1, keepdim=True)
        torch.sub(scores, row_max, out=below)
        # Shares first: the sum of scores near the largest number would be none.
        share = torch.where(undecided, below, 0).div_(count.clamp(min=1))
        cut = row_max + share.sum(-1, keepdim=True)
        costs_more = _terms(torch.sub(scores, cut, out=below), beta).sum(-1, keepdim=True) > (1 + COST_MARGIN) * budget
        low = torch.where((count > 0) & costs_more, torch.maximum(low, cut), low)
        high = torch.where((count > 0) & ~costs_more, torch.minimum(high, cut), high)
    return low


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
    values = values.double()
    offsets = row_offsets(row, len(row_max))
    # The maximum costs nothing, and is in every support.
    keep = values == row_max[row]
    undecided = ~keep
    while bool(undecided.any()):
        cut = _mean_of(values, undecided, row_max, row, offsets)
        at = cut[row]
        cost = torch.segment_reduce(_terms(values - at, exponent(alpha)), "sum", offsets=offsets)
        affordable = (cost < budget)[row]
        keep |= undecided & affordable & (values >= at)
        undecided &= torch.where(affordable, values < at, values > at)
    return keep


def excess(
    values: torch.Tensor, offsets: torch.Tensor, row: torch.Tensor, budget: float, alpha: float
) -> torch.Tensor:
    """(nnz,) z − τ on given supports, each positive: what `probabilities` are made of.

    With z_min the smallest score of a support, z − τ = (z − z_min) + s, and s solves Σ (z_i − z_min + s)^β = b. The
    left side is concave in s, so Newton from below never passes the root; (D/n)^(1/β) lies below it, where D is what
    a cut at z_min leaves of b, since no term can grow by more than s^β.

    Args:
        values: (nnz,) float64 scores of the supports, in row order.
        offsets: (N + 1,) where rows begin. row: (nnz,) their rows. budget: b. alpha: 2 < α < ∞.
    """
    beta = exponent(alpha)
    above = values - torch.segment_reduce(values, "min", offsets=offsets, initial=torch.inf)[row]
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


def _terms(below: torch.Tensor, beta: float) -> torch.Tensor:
    """max(z − t, 0)^β of z − t, in its place; a difference beyond the largest number costs what that number does."""
    if beta == 0:
        return below.sign_().clamp_(min=0)
    below.clamp_(0, torch.finfo(below.dtype).max)
    return below.sqrt_() if beta == 0.5 else below.pow_(beta)


def _mean_of(
    values: torch.Tensor, chosen: torch.Tensor, row_max: torch.Tensor, row: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """(N,) mean of each row's chosen values, between their least and largest; 0 where none is."""
    count = torch.segment_reduce(chosen.double(), "sum", offsets=offsets)
    share = torch.where(chosen, values - row_max[row], 0.0) / count.clamp_min(1)[row]
    mean = row_max + torch.segment_reduce(share, "sum", offsets=offsets)
    # Rounding may put the mean of equal values beside all of them, and nothing would be settled.
    least = torch.segment_reduce(torch.where(chosen, values, torch.inf), "min", offsets=offsets, initial=torch.inf)
    largest = torch.segment_reduce(torch.where(chosen, values, -torch.inf), "max", offsets=offsets, initial=-torch.inf)
    return torch.where(count > 0, torch.maximum(torch.minimum(mean, largest), least), 0.0)
