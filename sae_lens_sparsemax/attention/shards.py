"""Exact selection where the concepts are spread over the ranks of a process group.

Each rank holds a range of concepts and scores the tokens of all ranks of its group against it; the support of a row is
one over all of them. Tokens travel, concepts and their gradients never do.

Each rank first selects within its own concepts. The threshold of a subset never exceeds that of its row, so what a
rank leaves out is in no support and nothing is lost. What is left is settled by one rule for every α: a score is in
the support exactly if a cut there costs less than the budget, Σ_j max(z_j − z, 0)^β < b. The cost falls as the cut
rises, so the least affordable number is found by a search over the floats of the scores' own type, in their order:
seven cuts at a time, an eighth of what lies between the smallest and the largest candidate left by each. Ties are one
float and fall together.

The number of rounds follows from that first interval, which all ranks know exactly, so they leave together whatever
the rounding of the sums.

But: all ranks bring equally many tokens, and call together. A matrix of dense scores is never made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from sae_lens_sparsemax.attention import entmax
from sae_lens_sparsemax.attention.rows import row_offsets

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
# The older names of these two are deprecated from torch 2.13 on, which has the newer ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
# Cuts of one round; their costs travel together.
_CUTS = 7


class ConceptShard(NamedTuple):
    """The range of concepts that a rank holds.

    group: the ranks that hold the others; each brings as many tokens. first: the number of its first concept.
    """

    group: dist.ProcessGroup
    first: int

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        """(n, ...) of each rank to (N, ...) of all, in their order; differentiable."""
        return _Gather.apply(own, self.group)  # type: ignore[no-any-return]

    def scatter(self, parts: torch.Tensor) -> torch.Tensor:
        """(N, ...), of which each rank has a summand, to the (n, ...) sums of a rank's own tokens; differentiable."""
        return _Scatter.apply(parts, self.group)  # type: ignore[no-any-return]

    def total(self, part: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on all of them."""
        return _reduced(part, self.group, dist.ReduceOp.SUM)

    def largest(self, part: torch.Tensor) -> torch.Tensor:
        """The maximum over ranks, on all of them."""
        return _reduced(part, self.group, dist.ReduceOp.MAX)

    def settle(
        self, values: torch.Tensor, row: torch.Tensor, row_max: torch.Tensor, budget: float, alpha: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The supports over all ranks.

        Args:
            values: (nnz,) own candidates, in the order of their rows, the own part of every support among them.
            row: (nnz,) their rows. row_max: (N,) float64 largest own score, −inf where the rank has no concept.
            budget: b. alpha: α >= 2.

        Returns:
            (nnz,) bool, whether each is in the support of its row, and (N,) float64 the largest score of any rank.
        """
        dtype, beta, n_rows = values.dtype, entmax.exponent(alpha), len(row_max)
        offsets = row_offsets(row, n_rows)
        own_min = torch.segment_reduce(values.double(), "min", offsets=offsets, initial=torch.inf)
        top, bottom = self.largest(torch.stack([row_max, -own_min], 1)).unbind(1)
        high, low = _ordered(top.to(dtype)), _ordered(-bottom.to(dtype)) - 1
        for _ in range(_rounds(low, high)):
            stride = (((high >> 1) - (low >> 1)) >> 2) + 1
            steps = torch.arange(1, _CUTS + 1, device=low.device)
            cuts = torch.minimum(low[:, None] + steps * stride[:, None], high[:, None])
            at = _floats(cuts, dtype).double()
            cost = entmax.terms(values.double()[:, None] - at[row], beta)
            affordable = self.total(torch.segment_reduce(cost, "sum", offsets=offsets)) < budget
            n_too_low = (~affordable).sum(1, keepdim=True)
            edges = torch.cat([low[:, None], cuts, high[:, None]], 1)
            low, high = edges.gather(1, n_too_low).squeeze(1), edges.gather(1, n_too_low + 1).squeeze(1)
        return _ordered(values) >= high[row], top


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return all_gathered(own, group)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        return _scattered_sum(grads[0], ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parts: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _scattered_sum(parts, group)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        return all_gathered(grads[0], ctx.group), None


def all_gathered(own: torch.Tensor, group: Any) -> torch.Tensor:
    """(n, ...) of each rank as (N, ...) of all of a group, in their order."""
    everyones = own.new_empty(dist.get_world_size(group) * own.shape[0], *own.shape[1:])
    _all_gather(everyones, own.contiguous(), group=group)
    return everyones


def _scattered_sum(parts: torch.Tensor, group: Any) -> torch.Tensor:
    own = parts.new_empty(parts.shape[0] // dist.get_world_size(group), *parts.shape[1:])
    _reduce_scatter(own, parts.contiguous(), group=group)
    return own


def _reduced(part: torch.Tensor, group: Any, op: Any) -> torch.Tensor:
    whole = part.detach().clone()
    dist.all_reduce(whole, op, group=group)
    return whole


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """int64 numbers in the order of floats, neighbours for neighbours (−0, of which 0 is made, keeps its place)."""
    bits = (values + 0.0).view(_INTEGERS[values.dtype])
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits).long()


def _floats(ordered: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bits = ordered.to(_INTEGERS[dtype])
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits).view(dtype)


def _rounds(low: torch.Tensor, high: torch.Tensor) -> int:
    """How many rounds close the widest of the intervals."""
    half, rounds = int(((high >> 1) - (low >> 1)).max()) if len(low) else 0, 0
    width = 2 * half + 1
    while width > 1:
        width, rounds = (width + 1) // 2 // 4 + 1, rounds + 1
    return rounds
