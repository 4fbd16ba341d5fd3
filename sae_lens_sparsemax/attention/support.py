"""The supports of sparsemax and of its relatives up to TopK, exactly, without sorting.

For a row z of M scores, a budget b > 0 and α >= 2 this module finds the support S = {i : z_i > τ}, where τ is such that
Σ max(z_i − τ, 0)^β = b with β = 1/(α − 1). α = 2 and budget 1 is sparsemax itself, the Euclidean projection onto the
simplex (Martins & Astudillo 2016; the paper's Eqs. 4–7). Budget 1/g is sparsemax(g·z) read in units of z, so a gate
that looks at a multiple g of the scores costs nothing and never scales the score matrix. Larger α are α-entmax, and
α = ∞ is TopK; `entmax` settles those.

Two levels find S. The threshold of any subset of a row bounds τ from below, so a bound from the maxima of chunks of
scores loses nothing; only chunks whose maximum exceeds it are read again, and what exceeds it there (a little more
than S) is settled in float64. For sparsemax Newton finds the bound and Michelot's iteration settles. Where supports
are so dense that skipping chunks saves nothing, whole rows are settled instead.

But: no 1 < α < 2, whose supports are denser than sparsemax's, and no structured or masked variants.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from sae_lens_sparsemax.attention import entmax, kernels
from sae_lens_sparsemax.attention.rows import entry_rows, row_offsets
from sae_lens_sparsemax.attention.shards import Shard

# Scores per chunk, in rows of fewer than WIDE scores and in wider ones: the maxima of short chunks bound τ tightly and
# waste little, those of long ones are fewer.
SHORT_CHUNK, LONG_CHUNK, WIDE = 16, 32, 8192
# Above this share of chunks still to be read, reading everything once more is cheaper than gathering.
MAX_ACTIVE_CHUNKS = 0.3
# Newton on n terms of at most b rounds by about 1e-6·b in float32; a bound lower by this margin loses no candidate.
BOUND_MARGIN = 1e-4
NEWTON_TOLERANCE = 1e-3
MAX_NEWTON_STEPS = 100
DENSE_BLOCK = 2**19


class UnrankableScores(ValueError):
    """Scores among which no support is defined: NaN, +inf, or nothing but −inf in a row."""


class Support(NamedTuple):
    """The supports of N rows, as a CSR matrix with sorted columns, and the rule that made them.

    crow: (N + 1,) int64, where each row's entries begin. col: (nnz,) int64. values: (nnz,) the scores z there, in the
    dtype of the selection. row_max: (N,) float64, the largest score of each row. budget: b. alpha: α.
    shard: the range of concepts that these are entries of, where other ranks have the others of each row; what concerns
    whole rows is then asked of all ranks together.
    """

    crow: torch.Tensor
    col: torch.Tensor
    values: torch.Tensor
    row_max: torch.Tensor
    budget: float
    alpha: float
    shard: Shard | None = None

    @property
    def above_tau(self) -> torch.Tensor:
        """(nnz,) float64, z − τ, positive: their powers of 1/(α − 1) sum to the budget in each row.

        Taken from differences to the row's maximum: beside a large score τ itself would be rounded to it.
        """
        row, values = self.row, self.values.double()
        if self.alpha != 2:
            return entmax.excess(values, self.crow, row, self.budget, self.alpha, self.shard)
        shifted = values - self.row_max[row]
        total, counts = torch.segment_reduce(shifted, "sum", offsets=self.crow), self.counts
        if self.shard is not None:
            total, counts = self.shard.total(torch.stack([total, counts.double()]))
        return shifted - ((total - self.budget) / counts)[row]

    @property
    def tau(self) -> torch.Tensor:
        """(N,) float64, the thresholds in units of z; for α = ∞ the least selected score."""
        values = self.values.double()
        below = values if math.isinf(self.alpha) else values - self.above_tau
        tau = torch.segment_reduce(below, "min", offsets=self.crow, initial=torch.inf)
        return tau if self.shard is None else -self.shard.largest(-tau)

    @property
    def counts(self) -> torch.Tensor:
        """(N,) int64, the number of concepts that each row selects here (its L0, or a shard's part of it)."""
        return self.crow.diff()

    @property
    def row(self) -> torch.Tensor:
        """(nnz,) int64, the row of each entry."""
        return entry_rows(self.crow, len(self.col))


def select_support(z: torch.Tensor, budget: float = 1.0, alpha: float = 2.0) -> Support:
    """The exact support of every row of scores.

    Args:
        z: (N, M) scores, finite and of any size. Half-precision scores are read as float32, float64 ones stay
            float64. Entries of −inf are never selected (padding).
        budget: b in Σ max(z_i − τ, 0)^(1/(α − 1)) = b; 1 for sparsemax, 1/g for sparsemax(g·z), k for TopK.
        alpha: α, 2 for sparsemax, infinity for TopK (a k that is no whole number is rounded up, and what ties with
            the k-th is selected too).

    Returns:
        The support of each row, which holds at least its largest scores. Its decisions are those of a float64
        computation on the differences of the given scores from the largest of their row.

    Raises:
        ValueError: z is not a matrix with at least one column, a row of it holds NaN, +inf or nothing but −inf, the
            budget is not positive and finite, or alpha is less than 2.
    """
    if z.ndim != 2 or z.shape[1] == 0:
        raise ValueError(f"scores must have shape (N, M) with M >= 1, got {tuple(z.shape)}")
    if not 0 < budget < torch.inf:
        raise ValueError(f"budget must be positive and finite, got {budget}")
    if not alpha >= 2:
        raise ValueError(f"alpha must be at least 2, got {alpha}")
    budget = entmax.whole_budget(budget, alpha)
    if z.dtype not in (torch.float32, torch.float64):
        z = z.float()
    if z.shape[0] == 0:
        empty = torch.zeros(0, dtype=torch.int64, device=z.device)
        return Support(empty.new_zeros(1), empty, z.new_zeros(0), z.new_zeros(0, dtype=torch.float64), budget, alpha)
    if kernels.usable(z):
        from sae_lens_sparsemax.attention.kernels.selection import select

        crow, col, values, row_max = select(z, budget, alpha)
        found = Support(crow, col, values, row_max, budget, alpha)
        check_row_maxima(found.row_max)
        return found

    chunk = LONG_CHUNK if z.shape[1] >= WIDE else SHORT_CHUNK
    if z.shape[1] % chunk:
        z = torch.nn.functional.pad(z, (0, -z.shape[1] % chunk), value=-torch.inf)
    maxima = z.unflatten(1, (-1, chunk)).amax(-1)
    row_max = maxima.amax(-1, keepdim=True)
    # NaN and +inf reach the maximum of their row, so the scores need no pass of their own.
    check_row_maxima(row_max)
    bound = threshold_bound(maxima, row_max, budget, alpha)
    # A float output keeps a comparison vectorised; a boolean one with a broadcast operand is several times slower.
    active = _flat_nonzero(torch.gt(maxima, bound, out=torch.empty_like(maxima)))
    if active.numel() > MAX_ACTIVE_CHUNKS * maxima.numel():
        return _select_dense(z, row_max, bound, budget, alpha)

    read_again = z.reshape(-1, chunk).index_select(0, active)
    active_row = active // maxima.shape[1]
    above = torch.gt(read_again, bound[active_row], out=torch.empty_like(read_again))
    found = _flat_nonzero(above)
    values = read_again.view(-1).index_select(0, found)
    which = found // chunk
    row = active_row[which]
    col = (active[which] - row * maxima.shape[1]) * chunk + found % chunk
    return settle(values, row_offsets(row, z.shape[0]), col, row_max.double().squeeze(1), budget, alpha)


def threshold_bound(scores: torch.Tensor, row_max: torch.Tensor, budget: float, alpha: float) -> torch.Tensor:
    """(N, 1) a number that each row's support exceeds, from a subset of its scores, or from bounds below them.

    Args: (N, C) finite scores, or −inf for padding; (N, 1) the maximum of each row; b; α >= 2.
    """
    if alpha != 2:
        return entmax.lower_bound(scores, row_max, budget, alpha)
    bound = _newton_from_left((scores - row_max).clamp_(min=-2 * budget), budget).double() - BOUND_MARGIN * budget
    # Beside a large maximum the sum is rounded, perhaps up to the maximum itself; one number further down is below.
    bound = row_max.double() + bound
    return _round_down(torch.nextafter(bound, torch.full_like(bound, -torch.inf)), scores.dtype)


def settle(
    values: torch.Tensor, crow: torch.Tensor, col: torch.Tensor, row_max: torch.Tensor, budget: float, alpha: float
) -> Support:
    """The supports among candidates that hold them, by a float64 computation on their scores.

    Args:
        values: (nnz,) candidate scores, in the order of their rows and columns. crow: (N + 1,) and col: (nnz,) where
            they stand, as CSR lists.
        row_max: (N,) float64 the largest score of each row, which is a candidate too. budget: b. alpha: α >= 2.
    """
    if kernels.usable(values):
        from sae_lens_sparsemax.attention.kernels.settling import settle as run

        return Support(*run(values, crow, col, row_max, budget, alpha), row_max, budget, alpha)
    row = entry_rows(crow, len(col))
    if alpha == 2:
        keep = _michelot(values, crow, row, row_max, budget)
    else:
        keep = entmax.in_support(values, crow, row, budget, alpha)
    return Support(row_offsets(row[keep], len(row_max)), col[keep], values[keep], row_max, budget, alpha)


def sampled_std(scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The standard deviation, in that dtype, of all scores (N, M) of some sixteen of N tokens."""
    return scores[:: max(1, len(scores) // 16)].to(dtype).std(correction=0)


def check_row_maxima(row_max: torch.Tensor) -> None:
    """Refuse scores among which no support is defined.

    Args:
        row_max: the maxima of their rows; NaN or +inf where a row holds NaN.

    Raises:
        UnrankableScores: giving how many rows there are of what kind.
    """
    # One sum tells, unless it overflows.
    if not math.isfinite(row_max.sum().item()) and not bool(torch.isfinite(row_max).all()):
        padding = row_max == -torch.inf
        kinds = {"NaN or +inf": ~torch.isfinite(row_max) & ~padding, "nothing but -inf": padding}
        found = " and ".join(f"{kind} in {int(rows.sum())}" for kind, rows in kinds.items() if rows.any())
        raise UnrankableScores(
            f"scores must be finite, or -inf beside finite ones, got {found} of {row_max.numel()} rows"
        )


def _select_dense(z: torch.Tensor, row_max: torch.Tensor, bound: torch.Tensor, budget: float, alpha: float) -> Support:
    """Rows with dense supports, read whole: sparsemax's by about ten steps of Newton.

    Args: as for `select_support`, but z padded; (N, 1) row maxima, and numbers that supports exceed.
    """
    found = []
    # Blocks of rows small enough to stay in cache from one step to the next.
    step = max(1, DENSE_BLOCK // z.shape[1])
    for start in range(0, z.shape[0], step):
        rows = slice(start, start + step)
        block, largest = z[rows], row_max[rows]
        if alpha == 2:
            chosen = _dense_block(block, largest, budget)
        else:
            chosen = block > entmax.lower_bound(block, largest, budget, alpha, bound[rows])
        found.append(_flat_nonzero(chosen) + start * z.shape[1])
    found = torch.cat(found)
    row, values, row_max = found // z.shape[1], z.reshape(-1)[found], row_max.double().squeeze(1)
    col = found - row * z.shape[1]
    if alpha != 2:
        return settle(values, row_offsets(row, z.shape[0]), col, row_max, budget, alpha)
    return Support(row_offsets(row, z.shape[0]), col, values, row_max, budget, alpha)


def _dense_block(z: torch.Tensor, row_max: torch.Tensor, budget: float) -> torch.Tensor:
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


def _michelot(
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


def _round_down(tau: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The largest `dtype` number <= τ: comparing scores with it decides exactly as comparing with τ itself."""
    rounded = tau.to(dtype)
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.double() > tau, below, rounded)


def _flat_nonzero(mask: torch.Tensor) -> torch.Tensor:
    return mask.view(-1).nonzero().squeeze(1)
