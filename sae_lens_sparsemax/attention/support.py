"""The supports of sparsemax and of its relatives up to TopK, exactly, without sorting.

For a row z of M scores, a budget b > 0 and α >= 2 this module finds the support S = {i : z_i > τ}, where τ is such that
Σ max(z_i − τ, 0)^β = b with β = 1/(α − 1). α = 2 and budget 1 is sparsemax itself, the Euclidean projection onto the
simplex (Martins & Astudillo 2016; the paper's Eqs. 4–7). Budget 1/g is sparsemax(g·z) read in units of z, so a gate
that looks at a multiple g of the scores costs nothing and never scales the score matrix. Larger α are α-entmax, and
α = ∞ is TopK; `entmax` decides for those, `sparsemax` for α = 2.

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

from sae_lens_sparsemax.attention import entmax, kernels, sparsemax
from sae_lens_sparsemax.attention.rows import entry_rows, row_offsets
from sae_lens_sparsemax.attention.shards import ConceptShard
from sae_lens_sparsemax.attention.traceable import check_floating, wide

# Scores per chunk, in rows of fewer than WIDE scores and in wider ones: the maxima of short chunks bound τ tightly and
# waste little, those of long ones are fewer.
SHORT_CHUNK, LONG_CHUNK, WIDE = 16, 32, 8192
# Above this share of chunks still to be read, reading everything once more is cheaper than gathering.
MAX_ACTIVE_CHUNKS = 0.3
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
    shard: ConceptShard | None = None

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
        ValueError: z is not a floating-point matrix with at least one column, a row of it holds NaN, +inf or nothing
            but −inf, the budget is not positive and finite, or alpha is less than 2.
    """
    if z.ndim != 2 or z.shape[1] == 0:
        raise ValueError(f"scores must have shape (N, M) with M >= 1, got {tuple(z.shape)}")
    check_floating("scores", z)
    check_positive("budget", budget)
    if not alpha >= 2:
        raise ValueError(f"alpha must be at least 2, got {alpha}")
    budget = entmax.whole_budget(budget, alpha)
    z = wide(z)
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


def threshold_bound(
    scores: torch.Tensor, row_max: torch.Tensor, budget: float, alpha: float, known: torch.Tensor | None = None
) -> torch.Tensor:
    """(N, 1) a number that each row's support exceeds, from a subset of its scores, or from bounds below them.

    Args:
        scores: (N, C), finite, or −inf for padding. row_max: (N, 1) the maximum of each row. budget: b. alpha: α >= 2.
        known: (N, 1) such numbers where some are known, above which other gates than sparsemax look for better ones.
    """
    if alpha != 2:
        return entmax.lower_bound(scores, row_max, budget, alpha, known)
    return sparsemax.lower_bound(scores, row_max, budget)


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
        keep = sparsemax.in_support(values, crow, row, row_max, budget)
    else:
        keep = entmax.in_support(values, crow, row, budget, alpha)
    return Support(*_kept(keep, values, row, col, len(row_max)), row_max, budget, alpha)


def tightened(
    values: torch.Tensor, crow: torch.Tensor, col: torch.Tensor, row_max: torch.Tensor, budget: float, alpha: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, crow and col as for `settle`, without most candidates that a bound by their own scores rules out.

    It pays where there are many more of them than will stay; kernels settle those as fast.
    """
    if kernels.usable(values):
        return values, crow, col
    row = entry_rows(crow, len(col))
    largest = row_max.to(values.dtype)[:, None]
    least = torch.segment_reduce(values, "min", offsets=crow)[:, None]
    below_all = torch.nextafter(least, torch.full_like(least, -torch.inf))
    keep = torch.empty_like(row, dtype=torch.bool)
    for rows, entry, line, scores in entmax.matrices(values, crow, row):
        bound = threshold_bound(scores, largest[rows], budget, alpha, below_all[rows])
        keep[entry] = values[entry] > bound.squeeze(1)[line]
    crow, col, values = _kept(keep, values, row, col, len(row_max))
    return values, crow, col


def sampled_std(scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The standard deviation, in that dtype, of all scores (N, M) of some sixteen of N tokens."""
    return scores[:: max(1, len(scores) // 16)].to(dtype).std(correction=0)


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not positive, or infinite.

    Raises:
        ValueError: naming it.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be {'finite' if value == math.inf else 'positive'}, got {value}")


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
            chosen = sparsemax.of_block(block, largest, budget)
        else:
            chosen = block > entmax.lower_bound(block, largest, budget, alpha, bound[rows])
        found.append(_flat_nonzero(chosen) + start * z.shape[1])
    found = torch.cat(found)
    row, values, row_max = found // z.shape[1], z.reshape(-1)[found], row_max.double().squeeze(1)
    col = found - row * z.shape[1]
    if alpha != 2:
        return settle(values, row_offsets(row, z.shape[0]), col, row_max, budget, alpha)
    return Support(row_offsets(row, z.shape[0]), col, values, row_max, budget, alpha)


def _kept(
    keep: torch.Tensor, values: torch.Tensor, row: torch.Tensor, col: torch.Tensor, n_rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Offsets, columns and values of those of (nnz,) entries that are to be kept."""
    kept = keep.nonzero().squeeze(1)
    return row_offsets(row[kept], n_rows), col[kept], values[kept]


def _flat_nonzero(mask: torch.Tensor) -> torch.Tensor:
    return mask.view(-1).nonzero().squeeze(1)
