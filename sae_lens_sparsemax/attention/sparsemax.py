"""Whose scores are worth their place: the support of sparsemax, by Newton's steps and Michelot's.

Sparsemax keeps the scores above the τ with Σ max(z_i − τ, 0) = b. The sum is convex in τ, so steps of Newton from below
stay below τ; and τ of any subset that holds the support is that of all, so dropping what is below it settles the rest.

But: other gates are `entmax`'s.
"""

from __future__ import annotations

import torch

# Newton on n terms of at most b rounds by about 1e-6·b in float32; a bound lower by this margin loses no candidate.
BOUND_MARGIN = 1e-4
NEWTON_TOLERANCE = 1e-3
MAX_NEWTON_STEPS = 100


def lower_bound(scores: torch.Tensor, row_max: torch.Tensor, budget: float) -> torch.Tensor:
    """(N, 1) a number that each row's support exceeds, from a subset of its scores; arguments as for `entmax`'s."""
    bound = _newton_from_left((scores - row_max).clamp_(min=-2 * budget), budget).double() - BOUND_MARGIN * budget
    # Beside a large maximum the sum is rounded, perhaps up to the maximum itself; one number further down is below.
    bound = row_max.double() + bound
    return _round_down(torch.nextafter(bound, torch.full_like(bound, -torch.inf)), scores.dtype)


def in_support(
    values: torch.Tensor, crow: torch.Tensor, row: torch.Tensor, row_max: torch.Tensor, budget: float
) -> torch.Tensor:
    """Settle a superset of the supports: τ of what is left, drop what is below it, until nothing drops.

    Args: (nnz,) candidate scores, (N + 1,) their CSR offsets, (nnz,) their rows, (N,) float64 row maxima.
    Returns: (nnz,) bool, the supports.
    """
    shifted = values.double() - row_max[row]
    keep = torch.ones_like(shifted)
    n_kept = len(keep)
    while True:
        # Sums of contiguous segments, in order: the same bits on every run, also on a GPU.
        count = torch.segment_reduce(keep, "sum", offsets=crow)
        tau = (torch.segment_reduce(shifted * keep, "sum", offsets=crow) - budget) / count
        torch.gt(shifted, tau[row], out=keep)
        still_kept = int(keep.sum())
        if still_kept == n_kept:
            return keep.bool()
        n_kept = still_kept


def of_block(z: torch.Tensor, row_max: torch.Tensor, budget: float) -> torch.Tensor:
    """(n, M) which scores sparsemax selects; the last steps sum in float64."""
    # Whatever lies further than b below the maximum is out; the clamp keeps −inf out of the sums.
    floor = -2 * budget
    tau = _newton_from_left((z - row_max).clamp_(min=floor), budget).double()
    # float32 Newton stops within rounding of τ, which is b/M below the maximum at least; a few more steps in float64
    # settle which entries exceed it.
    tau.clamp_(max=-budget / z.shape[1])
    shifted = (z.double() - row_max.double()).clamp_(min=floor)
    above = torch.empty_like(shifted)
    for _ in range(MAX_NEWTON_STEPS):
        torch.gt(shifted, tau, out=above)
        count = above.sum(-1, keepdim=True)
        settled = (above.mul_(shifted).sum(-1, keepdim=True) - budget) / count
        if torch.equal(settled, tau):
            break
        tau = settled
    return shifted > tau


def _newton_from_left(shifted: torch.Tensor, budget: float) -> torch.Tensor:
    """(N, 1) lower bound of each row's τ, for scores with their row maximum subtracted.

    Σ max(z_i − t, 0) is convex and decreasing in t, so Newton from any t <= τ climbs towards τ and never passes it
    (but for rounding). It starts at max − b, where the maximum alone would spend the budget.
    """
    bound = torch.full_like(shifted[:, :1], -budget)
    above = torch.empty_like(shifted)
    for _ in range(MAX_NEWTON_STEPS):
        torch.sub(shifted, bound, out=above).relu_()
        excess = above.sum(-1, keepdim=True) - budget
        count = above.sign_().sum(-1, keepdim=True)
        step = excess / count.clamp_(min=1)
        bound += step.clamp_(min=0)
        if not bool((step > NEWTON_TOLERANCE * budget).any()):
            break
    return bound


def _round_down(tau: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest `dtype` number <= τ: comparing scores with it decides exactly as comparing with τ itself."""
    rounded = tau.to(dtype)
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.double() > tau, below, rounded)
