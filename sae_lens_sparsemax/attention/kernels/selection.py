"""Scores to exact supports in CSR form: four kernels and one prefix sum.

1. `_chunk_maxima`: each program reads a strip of one row and keeps the maximum of every chunk. The one full read of
   the scores, O(N·M).
2. `_bound_thresholds`: one program per row holds all maxima of the row in registers (at most MAX_CHUNKS, which sets
   the chunk length), climbs to a lower bound of τ by Newton steps, or for α > 2 by cuts at the mean of what is
   undecided (see `entmax`), and lists the chunks that exceed it, in order.
3. `_settle`: one program per row streams the listed chunks, a few kilobytes that stay in L1, and repeats Michelot's
   step in float64 until no entry drops out; `_settle_entmax` repeats cuts until none is undecided. Neither keeps
   candidates: reading the chunks again costs less than writing and compacting a superset.
4. `_write_support`: after a prefix sum of the counts gives every row its place, the listed chunks are read once more
   and what exceeds τ is written in column order.

The host waits once, for the number of entries, between 3 and 4. Rows with dense supports list all their chunks, so
steps 3 and 4 stream the whole row: about ten reads, no worse than a dense path, and none is needed.

Float32 scores have exact float64 differences and sums (short of 2²⁹ terms of one scale), so the decisions, and τ, are
those of the torch path whatever the order of summation.

But: one program per row leaves a GPU idle for a handful of very wide rows. Not yet timed on a GPU.
"""

# Kernels are not quite Python: launches take numbers for constexpr and options beyond the parameters, branches on
# constexpr leave nothing unbound, and the library's own annotations are loose.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

# Scores per chunk where rows are narrow enough; and the maxima that one program holds, 32 registers of 128 threads.
MIN_CHUNK = 32
MAX_CHUNKS = 4096
# Scores per tile: 16 registers of 128 threads in the first read, 8 where float64 doubles what a tile takes.
STRIP = 2048
TILE = 1024
# As in `support`: Newton's float32 rounding stays far below this share of the budget, so no candidate is lost.
BOUND_MARGIN = tl.constexpr(1e-4)
BOUND_CUTS = tl.constexpr(8)
NEWTON_TOLERANCE = tl.constexpr(1e-3)
MAX_NEWTON_STEPS = tl.constexpr(100)


@triton.jit
def _chunk_maxima(scores, maxima, stride, n_columns, n_chunks, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)
    column = chunk[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
    z = tl.load(scores + row * stride + column, mask=column < n_columns, other=-float("inf"))
    z = z.to(maxima.dtype.element_ty)
    # A maximum passes over NaN; as +inf the caller sees it.
    z = tl.where(z == z, z, float("inf"))
    tl.store(maxima + row * n_chunks + chunk, tl.max(z, 1), mask=chunk < n_chunks)


@triton.jit
def _cost(below, beta, TOPK: tl.constexpr):
    """Σ max(z − t, 0)^β of z − t."""
    spent = 1.0 if TOPK else tl.exp2(tl.log2(tl.where(below > 0, below, 1.0)) * beta.to(below.dtype))
    return tl.sum(tl.where(below > 0, spent, 0.0), 0)


@triton.jit
def _lower_bound(peak, top, rule, SPARSEMAX: tl.constexpr, TOPK: tl.constexpr):
    """A float64 lower bound of τ from scores and the largest of them, for sparsemax less that largest."""
    shifted = peak - top
    b = tl.load(rule)
    b_rounded = b.to(shifted.dtype)
    if SPARSEMAX:
        lower = -b_rounded
        step = b_rounded
        steps = 0
        while (step > b_rounded * NEWTON_TOLERANCE) & (steps < MAX_NEWTON_STEPS):
            above = shifted > lower
            excess = tl.sum(tl.where(above, shifted - lower, 0.0), 0) - b_rounded
            step = excess / tl.maximum(tl.sum(above.to(tl.int32), 0), 1).to(shifted.dtype)
            lower += tl.maximum(step, 0.0)
            steps += 1
        floor = lower.to(tl.float64) - b * BOUND_MARGIN
    else:
        beta = tl.load(rule + 1)
        lowest = top - float("inf")
        high = top
        for _ in range(BOUND_CUTS):
            undecided = (peak > lowest) & (peak < high)
            n_undecided = tl.sum(undecided.to(tl.int32), 0)
            share = shifted / tl.maximum(n_undecided, 1).to(shifted.dtype)
            cut = top + tl.sum(tl.where(undecided, share, 0.0), 0)
            costs_more = _cost(peak - cut, beta, TOPK) > b_rounded * (1 + BOUND_MARGIN)
            lowest = tl.where((n_undecided > 0) & costs_more, tl.maximum(lowest, cut), lowest)
            high = tl.where((n_undecided > 0) & (costs_more == 0), tl.minimum(high, cut), high)
        floor = lowest.to(tl.float64)
    return floor


@triton.jit
def _list(active, n_active, row, n_chunks, chunk, chosen):
    """Write which of a row's chunks are chosen, in order, and how many."""
    slot = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(active + row * n_chunks + slot, chunk, mask=chosen)
    tl.store(n_active + row, tl.sum(chosen.to(tl.int32), 0))


@triton.jit
def _bound_thresholds(
    maxima, rule, row_max, bound, active, n_active, n_chunks,
    SPARSEMAX: tl.constexpr, TOPK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, BLOCK)
    peak = tl.load(maxima + row * n_chunks + chunk, mask=chunk < n_chunks, other=-float("inf"))
    top = tl.max(peak, 0)
    floor = _lower_bound(peak, top, rule, SPARSEMAX, TOPK)
    exceeds = peak.to(tl.float64) - (top.to(tl.float64) if SPARSEMAX else 0.0) > floor
    _list(active, n_active, row, n_chunks, chunk, exceeds)
    tl.store(row_max + row, top.to(tl.float64))
    tl.store(bound + row, floor)


@triton.jit
def _load_tile(scores, chunks, start, n_listed, n_columns, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """Scores and columns of TILE // CHUNK listed chunks, in column order; −inf past the list or the row."""
    entry = tl.arange(0, TILE)
    slot = start + entry // CHUNK
    chunk = tl.load(chunks + slot, mask=slot < n_listed, other=0)
    column = chunk * CHUNK + entry % CHUNK
    z = tl.load(scores + column, mask=(slot < n_listed) & (column < n_columns), other=-float("inf"))
    return z, column


@triton.jit
def _settle(
    scores, active, n_active, row_max, bound, rule, threshold, count,
    n_columns, n_chunks, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n_listed = tl.load(n_active + row)
    top = tl.load(row_max + row)
    b = tl.load(rule)
    tau = tl.load(bound + row)
    # One more than any set can hold, so that the first two sets are always compared.
    n_above = n_listed * CHUNK + 1
    n_before = n_above + 1
    while n_above < n_before:
        n_before = n_above
        sums = tl.zeros([TILE], tl.float64)
        kept = tl.zeros([TILE], tl.int32)
        for start in range(0, n_listed, TILE // CHUNK):
            z, _ = _load_tile(
                scores + row * n_columns, active + row * n_chunks, start, n_listed, n_columns, CHUNK, TILE
            )
            shifted = z.to(tl.float64) - top
            sums += tl.where(shifted > tau, shifted, 0.0)
            kept += (shifted > tau).to(tl.int32)
        n_above = tl.sum(kept, 0)
        tau = (tl.sum(sums, 0) - b) / n_above.to(tl.float64)
    tl.store(threshold + row, tau)
    tl.store(count + row, n_above.to(tl.int64))


@triton.jit
def _settle_entmax(
    scores, active, n_active, row_max, bound, rule, threshold, count,
    n_columns, n_chunks, TOPK: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n_listed = tl.load(n_active + row)
    top = tl.load(row_max + row)
    b = tl.load(rule)
    beta = tl.load(rule + 1)
    # What exceeds `low` and stays below `high` is undecided; the maximum itself is in.
    low = tl.load(bound + row)
    high = top
    n_undecided = n_listed * CHUNK
    while n_undecided > 0:
        sums = tl.zeros([TILE], tl.float64)
        least = tl.full([TILE], float("inf"), tl.float64)
        largest = tl.full([TILE], -float("inf"), tl.float64)
        found = tl.zeros([TILE], tl.int32)
        kept = tl.zeros([TILE], tl.int32)
        for start in range(0, n_listed, TILE // CHUNK):
            z, _ = _load_tile(
                scores + row * n_columns, active + row * n_chunks, start, n_listed, n_columns, CHUNK, TILE
            )
            z = z.to(tl.float64)
            undecided = (z > low) & (z < high)
            sums += tl.where(undecided, z - top, 0.0)
            least = tl.minimum(least, tl.where(undecided, z, float("inf")))
            largest = tl.maximum(largest, tl.where(undecided, z, -float("inf")))
            found += undecided.to(tl.int32)
            kept += (z > low).to(tl.int32)
        n_undecided = tl.sum(found, 0)
        tl.store(count + row, tl.sum(kept, 0).to(tl.int64))
        if n_undecided > 0:
            mean = top + tl.sum(sums, 0) / n_undecided.to(tl.float64)
            cut = tl.maximum(tl.minimum(mean, tl.max(largest, 0)), tl.min(least, 0))
            cost = tl.zeros([1], tl.float64)
            for start in range(0, n_listed, TILE // CHUNK):
                z, _ = _load_tile(
                    scores + row * n_columns, active + row * n_chunks, start, n_listed, n_columns, CHUNK, TILE
                )
                cost += _cost(z.to(tl.float64) - cut, beta, TOPK)
            if tl.sum(cost, 0) < b:
                high = cut
            else:
                low = cut
    tl.store(threshold + row, low)


@triton.jit
def _write_support(
    scores, active, n_active, row_max, threshold, crow, col, values,
    n_columns, n_chunks, SPARSEMAX: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n_listed = tl.load(n_active + row)
    top = tl.load(row_max + row)
    tau = tl.load(threshold + row)
    place = tl.load(crow + row)
    for start in range(0, n_listed, TILE // CHUNK):
        z, column = _load_tile(
            scores + row * n_columns, active + row * n_chunks, start, n_listed, n_columns, CHUNK, TILE
        )
        # Sparsemax's threshold is less the maximum; the others' is a score, compared as it is.
        above = z.to(tl.float64) - (top if SPARSEMAX else 0.0) > tau
        rank = tl.cumsum(above.to(tl.int32), 0)
        tl.store(col + place + rank - 1, column.to(tl.int64), mask=above)
        tl.store(values + place + rank - 1, z, mask=above)
        place += tl.sum(above.to(tl.int32), 0)


def select(scores: torch.Tensor, budget: float, alpha: float = 2.0) -> tuple[torch.Tensor, ...]:
    """The supports that `support.select_support` finds.

    Args:
        scores: (N, M) float32 or float64, M >= 1; −inf entries are never selected.
        budget: b > 0 in Σ max(z_i − τ, 0)^(1/(α − 1)) = b. alpha: α >= 2, infinity for TopK.

    Returns:
        crow (N + 1,) int64, col (nnz,) int64 sorted in each row, values (nnz,) and the row maxima (N,) float64. A row
        that holds NaN or +inf has the maximum +inf and no support.
    """
    scores = scores.contiguous()
    n_rows, n_columns = scores.shape
    chunk = max(MIN_CHUNK, triton.next_power_of_2(triton.cdiv(n_columns, MAX_CHUNKS)))
    n_chunks = triton.cdiv(n_columns, chunk)
    crow = scores.new_zeros(n_rows + 1, dtype=torch.int64)
    if n_rows == 0:
        return crow, crow.new_empty(0), scores.new_empty(0), scores.new_empty(0, dtype=torch.float64)

    maxima = scores.new_empty(n_rows, n_chunks)
    active, n_active = crow.new_empty(n_rows, n_chunks, dtype=torch.int32), crow.new_empty(n_rows, dtype=torch.int32)
    row_max, bound, threshold = scores.new_empty(3, n_rows, dtype=torch.float64)
    count = crow.new_empty(n_rows)
    # Float arguments would reach the kernels rounded to float32.
    rule = torch.tensor([budget, 1 / (alpha - 1)], dtype=torch.float64, device=scores.device)
    strip, tile = max(1, STRIP // chunk), max(TILE, chunk)
    with torch.cuda.device_of(scores):
        _chunk_maxima[(n_rows, triton.cdiv(n_chunks, strip))](
            scores, maxima, n_columns, n_columns, n_chunks, CHUNK=chunk, CHUNKS=strip
        )
        _bound_thresholds[(n_rows,)](
            maxima,
            rule,
            row_max,
            bound,
            active,
            n_active,
            n_chunks,
            SPARSEMAX=alpha == 2,
            TOPK=alpha == math.inf,
            BLOCK=max(32, triton.next_power_of_2(n_chunks)),
            num_warps=4 if n_chunks <= 2048 else 8,
        )
        state = (scores, active, n_active, row_max, bound, rule, threshold, count, n_columns, n_chunks)
        if alpha == 2:
            _settle[(n_rows,)](*state, CHUNK=chunk, TILE=tile)
        else:
            _settle_entmax[(n_rows,)](*state, TOPK=alpha == math.inf, CHUNK=chunk, TILE=tile)
        torch.cumsum(count, 0, out=crow[1:])
        nnz = int(crow[-1])
        col, values = crow.new_empty(nnz), scores.new_empty(nnz)
        _write_support[(n_rows,)](
            scores, active, n_active, row_max, threshold, crow, col, values,
            n_columns, n_chunks, SPARSEMAX=alpha == 2, CHUNK=chunk, TILE=tile,
        )  # fmt: skip
    return crow, col, values, row_max
