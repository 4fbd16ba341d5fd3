"""Weighted sums of table rows over many lists, long lists split and every sum in a fixed order.

    out_l = Σ_j w_j · T[index_j]            j in list l

Over CSR lists (a token's concepts) this is the context; over CSC lists (a concept's tokens) it is dL/d(keys) and
dL/d(values), or with dy and q end to end in the table dL/d(concepts) = Σ_n a_ni dy_n + dz_ni q_n.

A few concepts fire on a large share of the tokens, most on a handful, so one program per list would wait for the
hottest. Lists are cut into segments of SEGMENT entries: the first segment of each list is summed by program l, every
further one by a program of its own into a partial row, and a second kernel adds a list's partial rows in order. No
atomics: two runs give the same bits. O(nnz·d) reads and at most nnz / SEGMENT partial rows; the host never waits, as
the number of further segments is bounded by nnz / SEGMENT and programs beyond the last find an empty list.

But: on an H200 no faster than cuSPARSE, whose sums have no fixed order.
"""

# Kernels are not quite Python: launches take numbers for constexpr and options beyond the parameters, branches on
# constexpr leave nothing unbound, and the library's own annotations are loose.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Entries per program: twice a usual support, so that tokens are rarely split and hot concepts are shared by many.
SEGMENT = 64
# Columns per program: 768 = 3 · 256 wastes no lane, and each gathered piece is still 1 KiB of one row.
MAX_BLOCK = 256
ENTRIES = 8
# A segment that no list exceeds.
UNSPLIT = 2**30


@triton.jit
def _sum_segments(
    offsets, index, weights, table, further_offsets, list_of_further, out, partial,
    n_lists, width, SEGMENT: tl.constexpr, ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    further = program - n_lists
    is_further = further >= 0
    which = tl.load(list_of_further + further, mask=is_further, other=0)
    which = tl.where(is_further, which, program)
    exists = which < n_lists
    begin = tl.load(offsets + which, mask=exists, other=0)
    end = tl.load(offsets + which + 1, mask=exists, other=0)
    segment = 1 + further - tl.load(further_offsets + which, mask=exists, other=0)
    begin += tl.where(is_further & exists, segment * SEGMENT, 0)
    end = tl.minimum(end, begin + SEGMENT)

    dim = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = dim < width
    total = tl.zeros([BLOCK], table.dtype.element_ty)
    for start in range(begin, end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        listed = entry < end
        at = tl.load(index + entry, mask=listed, other=0)[:, None] * width + dim[None, :]
        mask = listed[:, None] & inside[None, :]
        weight = tl.load(weights + entry, mask=listed, other=0.0)
        total += tl.sum(weight[:, None] * tl.load(table + at, mask=mask, other=0.0), 0)
    if is_further:
        tl.store(partial + further * width + dim, total, mask=inside)
    else:
        tl.store(out + program * width + dim, total, mask=inside)


@triton.jit
def _add_partial_rows(
    further_offsets, list_of_further, partial, out, n_lists, width, BLOCK: tl.constexpr
):  # fmt: skip
    """The program of a list's first further segment adds them all; the others have nothing to do."""
    further = tl.program_id(0).to(tl.int64)
    which = tl.load(list_of_further + further)
    exists = which < n_lists
    first = tl.load(further_offsets + which, mask=exists, other=-1)
    if first == further:
        dim = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = dim < width
        total = tl.load(out + which * width + dim, mask=inside, other=0.0)
        for segment in range(first, tl.load(further_offsets + which + 1)):
            total += tl.load(partial + segment * width + dim, mask=inside, other=0.0)
        tl.store(out + which * width + dim, total, mask=inside)


def weighted_rows(
    offsets: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, table: torch.Tensor, uneven: bool = True
) -> torch.Tensor:
    """Σ_j w_j table[index_j] over each of L lists.

    Args:
        offsets: (L + 1,) int64, where each list begins. index: (nnz,) int64, rows of the table.
        weights: (nnz,) and table: (R, d), of one float dtype.
        uneven: whether to split long lists, which takes a few small operations more.

    Returns:
        (L, d) in the dtype of the table.
    """
    table, weights = table.contiguous(), weights.contiguous()
    n_lists, width = len(offsets) - 1, table.shape[1]
    out = table.new_empty(n_lists, width)
    if out.numel() == 0:
        return out

    segment, n_further = SEGMENT, len(index) // SEGMENT if uneven else 0
    if n_further:
        further_offsets = torch.zeros_like(offsets)
        torch.cumsum((offsets.diff() - 1).clamp_(min=0) // segment, 0, out=further_offsets[1:])
        further = torch.arange(n_further, device=index.device)
        list_of_further = torch.searchsorted(further_offsets, further, right=True) - 1
        partial = table.new_empty(n_further, width)
    else:
        # Nothing reads or writes what no list is split into.
        segment, further_offsets, list_of_further, partial = UNSPLIT, offsets, offsets, out
    block = min(MAX_BLOCK, triton.next_power_of_2(width))
    n_blocks = triton.cdiv(width, block)
    with torch.cuda.device_of(table):
        _sum_segments[(n_lists + n_further, n_blocks)](
            offsets, index, weights, table, further_offsets, list_of_further,
            out, partial, n_lists, width, SEGMENT=segment, ENTRIES=ENTRIES, BLOCK=block, num_warps=2,
        )  # fmt: skip
        if n_further:
            _add_partial_rows[(n_further, n_blocks)](
                further_offsets, list_of_further, partial, out, n_lists, width, BLOCK=block, num_warps=2
            )
    return out
