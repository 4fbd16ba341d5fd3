"""Rows of scores, of which some chunks are listed, or lists of candidates, to exact supports in CSR form.

1. `_settle`: one program per row streams what is listed, a few kilobytes that stay in L1, and repeats Michelot's
   step in float64 until no entry drops out; `_settle_entmax` repeats cuts until none is undecided. Neither keeps
   candidates: reading them again costs less than writing and compacting a superset.
2. `_write_support`: after a prefix sum of the counts gives every row its place, what is listed is read once more, and
   what exceeds τ is written in column order.

The host waits once, for the number of entries, between the two. Rows with dense supports list all their chunks, so
whole rows are streamed instead: about ten reads, no worse than a dense path, and none is needed.

Float32 scores have exact float64 differences and sums (short of 2²⁹ terms of one scale), so the decisions, and τ, are
those of the torch path whatever the order of summation.
"""

# Kernels are not quite Python: launches take numbers for constexpr and options beyond the parameters, branches on
# constexpr leave nothing unbound, and the library's own annotations are loose.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from sae_lens_sparsemax.attention.entmax import exponent

# Scores per tile of listed chunks: 8 registers of 128 threads, where float64 doubles what a tile takes.
TILE = 1024
# Candidates per tile where these are listed themselves: usually all of a row's.
LIST_TILE = 256


@triton.jit
def _cost(below, beta, TOPK: tl.constexpr):
    """Σ max(z − t, 0)^β of z − t."""
    spent = 1.0 if TOPK else tl.exp2(tl.log2(tl.where(below > 0, below, 1.0)) * beta.to(below.dtype))
    return tl.sum(tl.where(below > 0, spent, 0.0), 0)


@triton.jit
def _load_tile(scores, chunks, start, n_listed, n_columns, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """Scores and columns of TILE // CHUNK listed chunks, in column order; −inf past the list or the row.

    A CHUNK of 1 means that the row is a list itself, all of it.
    """
    entry = tl.arange(0, TILE)
    slot = start + entry // CHUNK
    if CHUNK == 1:
        column = slot
        z = tl.load(scores + column, mask=slot < n_listed, other=-float("inf"))
    else:
        chunk = tl.load(chunks + slot, mask=slot < n_listed, other=0)
        column = chunk * CHUNK + entry % CHUNK
        z = tl.load(scores + column, mask=(slot < n_listed) & (column < n_columns), other=-float("inf"))
    return z, column


@triton.jit
def _row(active, n_active, row, n_columns, n_chunks, CHUNK: tl.constexpr):
    """Where a row's scores and its list of chunks begin, and how long the list is: for a CHUNK of 1, of scores.

    Lists come as CSR: their offsets are in `active`.
    """
    if CHUNK == 1:
        begin = tl.load(active + row)
        chunks = active
        n_listed = (tl.load(active + row + 1) - begin).to(tl.int32)
    else:
        begin = row * n_columns
        chunks = active + row * n_chunks
        n_listed = tl.load(n_active + row)
    return begin, chunks, n_listed


@triton.jit
def _settle(
    scores, active, n_active, row_max, bound, rule, threshold, count,
    n_columns, n_chunks, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    begin, chunks, n_listed = _row(active, n_active, row, n_columns, n_chunks, CHUNK)
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
            z, _ = _load_tile(scores + begin, chunks, start, n_listed, n_columns, CHUNK, TILE)
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
    begin, chunks, n_listed = _row(active, n_active, row, n_columns, n_chunks, CHUNK)
    top = tl.load(row_max + row)
    b = tl.load(rule)
    beta = tl.load(rule + 1)
    # What exceeds `low` and stays below `high` is undecided; the maximum itself is in.
    low = tl.load(bound + row)
    high = top
    n_undecided = n_listed * CHUNK
    # Stays so where nothing is listed, as of scores that are not finite.
    n_kept = 0
    while n_undecided > 0:
        sums = tl.zeros([TILE], tl.float64)
        least = tl.full([TILE], float("inf"), tl.float64)
        largest = tl.full([TILE], -float("inf"), tl.float64)
        found = tl.zeros([TILE], tl.int32)
        kept = tl.zeros([TILE], tl.int32)
        for start in range(0, n_listed, TILE // CHUNK):
            z, _ = _load_tile(scores + begin, chunks, start, n_listed, n_columns, CHUNK, TILE)
            z = z.to(tl.float64)
            undecided = (z > low) & (z < high)
            sums += tl.where(undecided, z - top, 0.0)
            least = tl.minimum(least, tl.where(undecided, z, float("inf")))
            largest = tl.maximum(largest, tl.where(undecided, z, -float("inf")))
            found += undecided.to(tl.int32)
            kept += (z > low).to(tl.int32)
        n_undecided = tl.sum(found, 0)
        n_kept = tl.sum(kept, 0)
        if n_undecided > 0:
            mean = top + tl.sum(sums, 0) / n_undecided.to(tl.float64)
            cut = tl.maximum(tl.minimum(mean, tl.max(largest, 0)), tl.min(least, 0))
            cost = tl.zeros([1], tl.float64)
            for start in range(0, n_listed, TILE // CHUNK):
                z, _ = _load_tile(scores + begin, chunks, start, n_listed, n_columns, CHUNK, TILE)
                cost += _cost(z.to(tl.float64) - cut, beta, TOPK)
            if tl.sum(cost, 0) < b:
                high = cut
            else:
                low = cut
    tl.store(threshold + row, low)
    tl.store(count + row, n_kept)


@triton.jit
def _write_support(
    scores, columns, active, n_active, row_max, threshold, crow, col, values,
    n_columns, n_chunks, SPARSEMAX: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    begin, chunks, n_listed = _row(active, n_active, row, n_columns, n_chunks, CHUNK)
    top = tl.load(row_max + row)
    tau = tl.load(threshold + row)
    place = tl.load(crow + row)
    for start in range(0, n_listed, TILE // CHUNK):
        z, column = _load_tile(scores + begin, chunks, start, n_listed, n_columns, CHUNK, TILE)
        # Sparsemax's threshold is less the maximum; the others' is a score, compared as it is.
        above = z.to(tl.float64) - (top if SPARSEMAX else 0.0) > tau
        rank = tl.cumsum(above.to(tl.int32), 0)
        if CHUNK == 1:
            column = tl.load(columns + begin + column, mask=above, other=0)
        tl.store(col + place + rank - 1, column.to(tl.int64), mask=above)
        tl.store(values + place + rank - 1, z, mask=above)
        place += tl.sum(above.to(tl.int32), 0)


def settle(
    values: torch.Tensor, crow: torch.Tensor, col: torch.Tensor, row_max: torch.Tensor, budget: float, alpha: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The supports among candidates that hold them, as `support.settle` finds them.

    Args:
        values: (nnz,) the scores of candidates, float32 or float64. crow: (N + 1,) and col: (nnz,) int64, where they
            stand, in order. row_max: (N,) float64, the largest of each row. budget: b > 0. alpha: α >= 2.

    Returns:
        crow, col and values of the supports.
    """
    lowest = torch.full_like(row_max, -math.inf)
    rule = as_rule(budget, alpha, values.device)
    return supports(values, col, crow, None, row_max, lowest, rule, alpha, 0, 0, 1, LIST_TILE)


def supports(
    scores, columns, active, n_active, row_max, bound, rule, alpha, n_columns, n_chunks, chunk, tile
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """CSR supports of rows of scores and their listed chunks; for chunks of 1, of lists with CSR offsets `active`."""
    n_rows = len(row_max)
    crow = row_max.new_zeros(n_rows + 1, dtype=torch.int64)
    if n_rows == 0:
        return crow, crow.new_empty(0), scores.new_empty(0)
    count, threshold = crow.new_empty(n_rows), torch.empty_like(row_max)
    state = (scores, active, n_active, row_max, bound, rule, threshold, count, n_columns, n_chunks)
    with torch.cuda.device_of(scores):
        if alpha == 2:
            _settle[(n_rows,)](*state, CHUNK=chunk, TILE=tile)
        else:
            _settle_entmax[(n_rows,)](*state, TOPK=alpha == math.inf, CHUNK=chunk, TILE=tile)
        torch.cumsum(count, 0, out=crow[1:])
        nnz = int(crow[-1])
        col, values = crow.new_empty(nnz), scores.new_empty(nnz)
        _write_support[(n_rows,)](
            scores, columns, active, n_active, row_max, threshold, crow, col, values,
            n_columns, n_chunks, SPARSEMAX=alpha == 2, CHUNK=chunk, TILE=tile,
        )  # fmt: skip
    return crow, col, values


def as_rule(budget: float, alpha: float, device: torch.device, *further: float) -> torch.Tensor:
    """b, β and what else there is; float arguments would reach the kernels rounded to float32."""
    return torch.tensor([budget, exponent(alpha), *further], dtype=torch.float64, device=device)
