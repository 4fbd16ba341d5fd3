"""Whose scores are worth their place: the support of α-entmax for α > 2, up to TopK at infinity.

α-entmax (Peters, Niculae & Martins 2019) keeps the scores above the τ with Σ max(z_i − τ, 0)^β = b, β = 1/(α − 1).
At α = 2 that is sparsemax, where one large score can spend the whole budget b; a smaller β makes large scores cheaper,
and at α = ∞ every concept costs 1 whatever its score: TopK with k = b, which keeps all that tie with the k-th.

Nobody needs τ to decide. The cost of a cut at t, Σ max(z_j − t, 0)^β, falls with t, so a score z is in the support
exactly if a cut at z costs less than b; a cut that costs less settles everything above it, one that costs more
everything below it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

# A bound need not be tight: so many halvings leave a thousandth of the way from a row's mean to its maximum.
BOUND_CUTS = 10
# A float32 cost of n terms is trusted to be at least b when it exceeds it by this share.
COST_MARGIN = 1e-4
MAX_NEWTON_STEPS = 100


def exponent(alpha: float) -> float:
    """β = 1/(α − 1), what scores above the threshold cost: 1 for sparsemax, 0 for TopK."""
    return 1 / (alpha - 1)


def whole_budget(budget: float, alpha: float) -> float:
    """The budget; for TopK, where concepts cost 1, the k that it pays for, rounded up."""
    # A k that was kept as 1/k comes back a little beside itself.
    return float(math.ceil(budget * (1 - 1e-9))) if alpha == math.inf else budget


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
    beta, affordable = exponent(alpha), (1 + COST_MARGIN) * budget
    below = torch.sub(scores, row_max).clamp_(min=-torch.finfo(scores.dtype).max)
    # About half of the scores lie above their mean; where a cut there costs too little, supports are dense.
    low = row_max + below.div_(scores.shape[1]).sum(-1, keepdim=True)
    enough = terms(torch.sub(scores, low, out=below), beta).sum(-1, keepdim=True) > affordable
    high = row_max
    for _ in range(BOUND_CUTS):
        cut = low / 2 + high / 2
        costs_more = terms(torch.sub(scores, cut, out=below), beta).sum(-1, keepdim=True) > affordable
        low, high = torch.where(costs_more, cut, low), torch.where(costs_more, high, cut)
    return torch.where(enough, low, -torch.inf)


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
    counts = torch.bincount(row, minlength=len(row_max))
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    keep = torch.zeros_like(row, dtype=torch.bool)
    # Rows of a similar number of candidates together, as a matrix: padding doubles them at most.
    size = (counts - 1).clamp_min(1).log2().floor().long()
    for group in size[counts > 0].unique().tolist():
        chosen = (size == group) & (counts > 0)
        entry = chosen[row]
        line = (chosen.cumsum(0) - 1)[row[entry]]
        shape = (int(chosen.sum()), int(counts[chosen].max()))
        scores = row_max.new_full(shape, -torch.inf).index_put_((line, place[entry]), values[entry].double())
        least = least_affordable(scores, budget, exponent(alpha))
        keep[entry] = values[entry].double() >= least.squeeze(1)[line]
    return keep


def least_affordable(scores: torch.Tensor, budget: float, beta: float) -> torch.Tensor:
    """(..., 1) the least score of each row's support, by bisection over ranks: one cut for each bit of their number.

    Args: (..., W) float64 scores, −inf for padding; b; β.
    """
    width = int(scores.shape[-1])
    ranked = scores.sort(-1, descending=True).values
    level = ranked[..., :1]
    last = torch.zeros_like(level, dtype=torch.int64)
    for bit in reversed(range(width.bit_length())):
        further = last + 2**bit
        next_level = ranked.gather(-1, further.clamp_max(width - 1))
        spent = terms(ranked - next_level, beta).sum(-1, keepdim=True)
        # Padding costs NaN, which is affordable to nobody.
        affordable = (further < width) & (spent < budget)
        last = torch.where(affordable, further, last)
        level = torch.where(affordable, next_level, level)
    return level


def excess(
    values: torch.Tensor,
    offsets: torch.Tensor,
    row: torch.Tensor,
    budget: float,
    alpha: float,
    shard: Any = None,
) -> torch.Tensor:
    """(nnz,) z − τ on given supports, each positive: what `probabilities` are made of.

    With z_min the smallest score of a support, z − τ = (z − z_min) + s, and s solves Σ (z_i − z_min + s)^β = b. The
    left side is concave in s, so Newton from below never passes the root; (D/n)^(1/β) lies below it, where D is what
    a cut at z_min leaves of b, since no term can grow by more than s^β.

    Args:
        values: (nnz,) float64 scores of the supports, in row order.
        offsets: (N + 1,) where rows begin. row: (nnz,) their rows. budget: b. alpha: 2 < α < ∞.
        shard: `shards.Shard` where rows have entries on other ranks too.
    """
    beta = exponent(alpha)

    def total(*summands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sums = torch.stack([torch.segment_reduce(each, "sum", offsets=offsets) for each in summands], 1)
        return (sums if shard is None else shard.total(sums)).unbind(1)

    least = torch.segment_reduce(values, "min", offsets=offsets, initial=torch.inf)
    least = least if shard is None else -shard.largest(-least)
    above = values - least[row]
    spent, counts = total(above.pow(beta), torch.ones_like(above))
    s = ((budget - spent).clamp_min(0) / counts.clamp_min(1)).pow(1 / beta)
    for _ in range(MAX_NEWTON_STEPS):
        over = above + s[row]
        spent, slope = total(over.pow(beta), beta * over.pow(beta - 1))
        step = torch.where(slope.isfinite(), (budget - spent) / slope, 0)
        s = s + step.clamp_min(0)
        goes_on = (step > 1e-15 * s).any()
        if not bool(goes_on if shard is None else shard.largest(goes_on.double())):
            break
    return above + s[row]


def largest_difference(budget: float, alpha: float) -> float:
    """How far below its row's maximum a score can be and still be in the support: the maximum alone would cost b."""
    if alpha == math.inf:
        return math.inf
    power = (alpha - 1) * math.log(budget)
    # A little more, so that rounding leaves nothing out that a closer look would keep.
    return math.exp(power) * (1 + 1e-9) if power < 700 else math.inf


def terms(below: torch.Tensor, beta: float) -> torch.Tensor:
    """max(z − t, 0)^β of z − t, where possible in its place.

    A difference beyond the largest number costs what that number does.
    """
    largest = torch.finfo(below.dtype).max
    if beta == 0:
        return below.sign_().relu_()
    if beta == 1:
        return below.relu_()
    if beta not in (0.5, 0.25):
        return below.clamp(0, largest).pow(beta)
    # Roots are several times faster than powers, but of zero they are slow. What a row's zeros then cost is far below
    # the last digit in float64, and is taken off in float32, so that costs are never too large.
    floor = 1e-300 if below.dtype == torch.float64 else 1e-30
    roots = below.clamp(floor, largest).sqrt_()
    roots = roots.sqrt_() if beta == 0.25 else roots
    return roots if below.dtype == torch.float64 else roots.sub_(floor**beta)
