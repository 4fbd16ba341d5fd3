"""Which scores in bfloat16 may belong to supports of the exact ones: three kernels and one prefix sum.

The bound and its proof are `attention.screening`'s. A score's error is at most r|z| + e, with e = a·k + c·l + x made of
two numbers of its row, a and c, and three of its chunk of columns, k, l and x.

1. `selection._chunk_maxima`: the one full read of the scores, half the bytes of float32.
2. `_list_chunks`: one program per row takes the errors off the maxima, finds a lower bound of τ among what is left and
   lists the chunks that may reach it.
3. `_list_candidates`, once to count and once to write, around the prefix sum: reads the listed chunks again.

But: as in `selection`, one program per row.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from sae_lens_sparsemax.attention.kernels.selection import MAX_CHUNKS, STRIP, _chunk_maxima, _list, _lower_bound
from sae_lens_sparsemax.attention.kernels.settling import TILE, _load_tile, as_rule

# What adding the bound of the differences to the maximum in float64 may round up, generously.
BOUND_ROUNDING = tl.constexpr(2.0**-50)


@triton.jit
def _least(bound, of_row, of_chunk, rule, chunk, n_chunks, is_chunk):
    """What the rounded scores of chunks must exceed, and the e of each."""
    norm = tl.load(of_chunk + chunk, mask=is_chunk, other=0.0).to(tl.float64)
    lost = tl.load(of_chunk + n_chunks + chunk, mask=is_chunk, other=0.0).to(tl.float64)
    more = tl.load(of_chunk + 2 * n_chunks + chunk, mask=is_chunk, other=0.0).to(tl.float64)
    error = tl.load(of_row).to(tl.float64) * norm + tl.load(of_row + 1).to(tl.float64) * lost + more
    # z + r|z| + e > bound  ⇒  z > w − r/(1 − r)·|w|, where w = bound − e.
    share = tl.load(rule + 2)
    least = bound - error
    return least - share / (1 - share) * tl.abs(least), error


@triton.jit
def _list_chunks(
    maxima, of_row, of_chunk, rule, bound, active, n_active, n_chunks,
    SPARSEMAX: tl.constexpr, TOPK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, BLOCK)
    is_chunk = chunk < n_chunks
    peak = tl.load(maxima + row * n_chunks + chunk, mask=is_chunk, other=-float("inf"))
    _, error = _least(0.0, of_row + 2 * row, of_chunk, rule, chunk, n_chunks, is_chunk)
    share = tl.load(rule + 2)
    below = tl.where(is_chunk, peak.to(tl.float64) - share * tl.abs(peak.to(tl.float64)) - error, -float("inf"))
    # Rounded to float32 it may rise, by less than a 128th of what was taken off twice: see WIDER in `screening`.
    below = below.to(tl.float32)
    top = tl.max(below, 0)
    floor = _lower_bound(below, top, rule, SPARSEMAX, TOPK)
    if SPARSEMAX:
        top = top.to(tl.float64)
        floor += top - tl.abs(top) * BOUND_ROUNDING
    least, _ = _least(floor, of_row + 2 * row, of_chunk, rule, chunk, n_chunks, is_chunk)
    listed = is_chunk & (peak.to(tl.float64) > least)
    _list(active, n_active, row, n_chunks, chunk, listed)
    tl.store(bound + row, floor)


@triton.jit
def _list_candidates(
    scores, stride, of_row, of_chunk, rule, bound, active, n_active, crow, col,
    n_columns, n_chunks, WRITE: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n_listed = tl.load(n_active + row)
    floor = tl.load(bound + row)
    place = tl.load(crow + row)
    for start in range(0, n_listed, TILE // CHUNK):
        z, column = _load_tile(scores + row * stride, active + row * n_chunks, start, n_listed, n_columns, CHUNK, TILE)
        z = z.to(tl.float32).to(tl.float64)
        here = z > -float("inf")
        least, _ = _least(floor, of_row + 2 * row, of_chunk, rule, column // CHUNK, n_chunks, here)
        chosen = here & (z > least)
        if WRITE:
            rank = tl.cumsum(chosen.to(tl.int32), 0)
            tl.store(col + place + rank - 1, column.to(tl.int64), mask=chosen)
        place += tl.sum(chosen.to(tl.int32), 0)
    if not WRITE:
        tl.store(crow + row, place)


def candidates(
    scores: torch.Tensor,
    of_row: torch.Tensor,
    of_chunk: torch.Tensor,
    chunk: int,
    share: float,
    budget: float,
    alpha: float,
    most: float,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A superset of the supports of the scores that these were rounded from.

    Args:
        scores: (N, M) bfloat16, rows contiguous. of_row: (N, 2) float32 a and c. of_chunk: (3, C) float32 k, l and x
            of the C chunks. chunk: their length, a power of two. share: r. budget: b. alpha: α >= 2.
        most: how many candidates are too many.

    Returns:
        crow (N + 1,) and col (nnz,) int64, sorted in each row; None where there would be too many.
    """
    (n_rows, n_columns), n_chunks = scores.shape, of_chunk.shape[1]
    crow = of_row.new_zeros(n_rows + 1, dtype=torch.int64)
    maxima = of_row.new_empty(n_rows, n_chunks)
    active, n_active = crow.new_empty(n_rows, n_chunks, dtype=torch.int32), crow.new_empty(n_rows, dtype=torch.int32)
    bound, counts = of_row.new_empty(n_rows, dtype=torch.float64), crow.new_zeros(n_rows)
    rule = as_rule(budget, alpha, scores.device, share)
    stride, strip, tile = scores.stride(0), max(1, STRIP // chunk), max(TILE, chunk)
    with torch.cuda.device_of(scores):
        _chunk_maxima[(n_rows, triton.cdiv(n_chunks, strip))](
            scores, maxima, stride, n_columns, n_chunks, CHUNK=chunk, CHUNKS=strip
        )
        _list_chunks[(n_rows,)](
            maxima, of_row, of_chunk, rule, bound, active, n_active, n_chunks,
            SPARSEMAX=alpha == 2, TOPK=alpha == math.inf, BLOCK=max(32, triton.next_power_of_2(n_chunks)),
            num_warps=4 if n_chunks <= MAX_CHUNKS // 2 else 8,
        )  # fmt: skip
        state = (scores, stride, of_row, of_chunk, rule, bound, active, n_active)
        _list_candidates[(n_rows,)](*state, counts, counts, n_columns, n_chunks, WRITE=False, CHUNK=chunk, TILE=tile)
        torch.cumsum(counts, 0, out=crow[1:])
        if (nnz := int(crow[-1])) > most:
            return None
        col = crow.new_empty(nnz)
        _list_candidates[(n_rows,)](*state, crow, col, n_columns, n_chunks, WRITE=True, CHUNK=chunk, TILE=tile)
    return crow, col
