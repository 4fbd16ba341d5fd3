"""Scores to exact supports in CSR form: which parts of a row are read again, and then what `settling` makes of these.

1. `_chunk_maxima`: each program reads a strip of one row and keeps the maximum of every chunk. The one full read of
   the scores, O(N·M).
2. `_bound_thresholds`: one program per row holds all maxima of the row in registers (at most MAX_CHUNKS, which sets
   the chunk length), climbs to a lower bound of τ by Newton steps, or for α > 2 by cuts at the mean of what is
   undecided (see `entmax`), and lists the chunks that exceed it, in order.
3. `settling` settles what is listed and writes the supports.

But: one program per row leaves a GPU idle for a handful of very wide rows.
"""

# Kernels are not quite Python: launches take numbers for constexpr and options beyond the parameters, branches on
# constexpr leave nothing unbound, and the library's own annotations are loose.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from sae_lens_sparsemax.attention.kernels.settling import TILE, _cost, as_rule, supports

# Scores per chunk where rows are narrow enough; and the maxima that one program holds, 32 registers of 128 threads.
MIN_CHUNK = 32
MAX_CHUNKS = 4096
# Scores per program in the first read: 16 registers of 128 threads.
STRIP = 2048
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
    row_max, bound = scores.new_empty(2, n_rows, dtype=torch.float64)
    rule = as_rule(budget, alpha, scores.device)
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
    state = (n_columns, n_chunks, chunk, tile)
    crow, col, values = supports(scores, None, active, n_active, row_max, bound, rule, alpha, *state)
    return crow, col, values, row_max
