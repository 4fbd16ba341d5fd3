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
from collections.abc import Iterator
from typing import Any

import torch

# A bound need not be tight: so many halvings leave a 250th of the way from a row's mean to its maximum.
BOUND_CUTS = 8
# And so many where a bound is known already.
MORE_CUTS = 6
# A float32 cost of n terms is trusted to be at least b when it exceeds it by this share.
COST_MARGIN = 1e-4
MAX_NEWTON_STEPS = 100
# Rows of candidates become one matrix if that does not make them more than so many times as many.
MAX_PADDING = 2
# A good bound leaves few candidates below the threshold; among so many lowest ones it is looked for first.
N_LOWEST = 8
_ROOTS = (0.5, 0.25)
_NEARLY_ZERO = {torch.float32: 1e-30, torch.float64: 1e-290}


def exponent(alpha: float) -> float:
    """β = 1/(α − 1), what scores above the threshold cost: 1 for sparsemax, 0 for TopK."""
    return 1 / (alpha - 1)


def whole_budget(budget: float, alpha: float) -> float:
    """The budget; for TopK, where concepts cost 1, the k that it pays for, rounded up."""
    # A k that was kept as 1/k comes back a little beside itself.
    return float(math.ceil(budget * (1 - 1e-9))) if alpha == math.inf else budget


def lower_bound(
    scores: torch.Tensor,
    row_max: torch.Tensor,
    budget: float,
    alpha: float,
    known: torch.Tensor | None = None,
) -> torch.Tensor:
    """(N, 1) a number that each row's support exceeds, from a subset of its scores.

    Fewer scores cost less, so a cut that costs b among them costs b among all. A difference of two floats is rounded
    once, relative to itself, so the costs are as exact as their sum wherever the scores lie.

    Args:
        scores: (N, C), the maximum of the row among them; −inf for padding. row_max: (N, 1).
        budget: b. alpha: α > 2.
        known: (N, 1) such numbers, −inf where none is known; better ones are looked for above them.

    Returns:
        The bounds; −inf where no cut among the subset costs b.
    """
    beta = exponent(alpha)
    affordable = (1 + COST_MARGIN) * budget + scores.shape[1] * zero_cost(scores.dtype, beta)
    below = torch.empty_like(scores)

    def costs_more(cut: torch.Tensor) -> torch.Tensor:
        return terms(torch.sub(scores, cut, out=below), beta).sum(-1, keepdim=True) > affordable

    # About half of the scores lie above their mean; where a cut there costs too little, supports are dense.
    torch.sub(scores, row_max, out=below).clamp_(min=-torch.finfo(scores.dtype).max)
    low = row_max + below.div_(scores.shape[1]).sum(-1, keepdim=True)
    low = torch.where(costs_more(low), low, -torch.inf)
    low = low if known is None else torch.maximum(low, known)
    high = row_max
    for _ in range(BOUND_CUTS if known is None else MORE_CUTS):
        cut = low / 2 + high / 2
        more = costs_more(cut)
        low, high = torch.where(more, cut, low), torch.where(more, high, cut)
    return low


def in_support(
    values: torch.Tensor, crow: torch.Tensor, row: torch.Tensor, budget: float, alpha: float
) -> torch.Tensor:
    """Settle a superset of the supports, in float64.

    Args:
        values: (nnz,) candidate scores, every row's support among them. crow: (N + 1,) their CSR offsets. row: (nnz,)
            their rows. budget: b. alpha: α > 2.

    Returns:
        (nnz,) bool, whether each is in the support of its row.
    """
    keep = torch.empty_like(row, dtype=torch.bool)
    for _, entry, line, scores in matrices(values.double(), crow, row):
        keep[entry] = values[entry] >= _least_from_below(scores, budget, exponent(alpha)).squeeze(1)[line]
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


def _least_from_below(scores: torch.Tensor, budget: float, beta: float) -> torch.Tensor:
    """(N, 1) what `least_affordable` gives for (N, W), looked for among the lowest first."""
    if scores.shape[-1] <= 2 * N_LOWEST:
        return least_affordable(scores, budget, beta)
    lowest = torch.where(scores == -torch.inf, torch.inf, scores).topk(N_LOWEST, -1, largest=False).values
    # How many of the lowest are not affordable; the highest score of a row always is.
    n_above = torch.zeros_like(lowest[:, :1], dtype=torch.int64)
    below = torch.empty_like(scores)
    for step in [2**bit for bit in reversed(range(N_LOWEST.bit_length()))]:
        further = n_above + step
        level = lowest.gather(-1, (further - 1).clamp_max(N_LOWEST - 1))
        is_too_much = terms(torch.sub(scores, level, out=below), beta).sum(-1, keepdim=True) >= budget
        n_above = torch.where(is_too_much & (further <= N_LOWEST), further, n_above)
    least = lowest.gather(-1, n_above.clamp_max(N_LOWEST - 1))
    rest = (n_above == N_LOWEST).squeeze(1).nonzero().squeeze(1)
    if len(rest):
        least[rest] = least_affordable(scores[rest], budget, beta)
    return least


def matrices(
    values: torch.Tensor, crow: torch.Tensor, row: torch.Tensor
) -> Iterator[tuple[Any, Any, torch.Tensor, torch.Tensor]]:
    """The lists of N rows as one matrix, or those of rows of similar length as one each, so that padding is little.

    Args: (nnz,) values; (N + 1,) their CSR offsets; (nnz,) their rows.

    Yields:
        Which rows and which entries they are, the line of each entry, and (n, W) the values, −inf beside them.
    """
    if not len(row):
        return
    counts = crow.diff()
    place = torch.arange(len(row), device=row.device) - crow[row]
    widest = int(counts.max())
    if len(counts) * widest <= MAX_PADDING * len(row):
        everything = slice(None)
        yield everything, everything, row, _matrix(len(counts), widest, row, place, values)
        return
    # Padding doubles them at most.
    size = (counts - 1).clamp_min(1).log2().floor().long()
    for group in size[counts > 0].unique().tolist():
        chosen = (size == group) & (counts > 0)
        entry = chosen[row].nonzero().squeeze(1)
        line = (chosen.cumsum(0) - 1)[row[entry]]
        widest = int(counts[chosen].max())
        yield chosen, entry, line, _matrix(int(chosen.sum()), widest, line, place[entry], values[entry])


def _matrix(n_rows: int, width: int, row: torch.Tensor, place: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(N, W), −inf beside the (nnz,) values."""
    scores = values.new_full((n_rows * width,), -torch.inf)
    return scores.scatter_(0, row * width + place, values).view(n_rows, width)


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
        shard: `shards.ConceptShard` where rows have entries on other ranks too.
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


def terms(below: torch.Tensor, beta: float) -> torch.Tensor:
    """max(z − t, 0)^β of z − t, in its place.

    A difference beyond the largest number costs what that number does; one below zero, `zero_cost`.
    """
    # Both clamps at once have no rule under vmap where they are in place.
    largest = torch.finfo(below.dtype).max
    if beta == 0:
        return below.sign_().relu_()
    if beta == 1:
        return below.relu_()
    if beta not in _ROOTS:
        return below.relu_().clamp_max_(largest).pow_(beta)
    # Roots are several times faster than powers, but of zero they are slow.
    roots = below.clamp_min_(_NEARLY_ZERO[below.dtype]).clamp_max_(largest).sqrt_()
    return roots.sqrt_() if beta == 0.25 else roots


def zero_cost(dtype: torch.dtype, beta: float) -> float:
    """What nothing costs in `terms`: in float64 far below the last digit of any sum, in float32 to be taken off."""
    return _NEARLY_ZERO[dtype] ** beta if beta in _ROOTS else 0.0
