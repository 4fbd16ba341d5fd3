"""Inner products of rows of two tables at the entries of CSR lists: exact scores of candidates, gradients of weights.

    out_j = ⟨left_n, right_j⟩          j in list n

One program per list holds left_n in registers and streams the rows of the other table: O(nnz·d) reads, each row's sum
in a fixed order. cuSPARSE's sampled product does the same for any pattern, but prepares and buffers for each call.

But: whole rows in registers, so d is at most MAX_WIDTH.
"""

# Kernels are not quite Python: launches take numbers for constexpr and options beyond the parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Elements per tile: 32 registers of 128 threads, with four rows in flight at d = 768.
TILE = 4096


@triton.jit
def _sampled_product(crow, col, left, right, out, width, ENTRIES: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(crow + row)
    end = tl.load(crow + row + 1)
    dim = tl.arange(0, BLOCK)
    inside = dim < width
    of_row = tl.load(left + row * width + dim, mask=inside, other=0.0)
    for start in range(begin, end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        listed = entry < end
        at = tl.load(col + entry, mask=listed, other=0)[:, None] * width + dim[None, :]
        of_column = tl.load(right + at, mask=listed[:, None] & inside[None, :], other=0.0)
        tl.store(out + entry, tl.sum(of_column * of_row[None, :], 1), mask=listed)


def sampled_product(crow: torch.Tensor, col: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(nnz,) the inner products left[n] · right[j] at the entries j of each list n.

    Args:
        crow, col: (N + 1,) and (nnz,) int64. left: (N, d) and right: (M, d), of one float dtype.
    """
    left, right = left.contiguous(), right.contiguous()
    n_rows, width = left.shape
    out = left.new_empty(len(col))
    if out.numel() == 0:
        return out
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(left):
        _sampled_product[(n_rows,)](
            crow, col, left, right, out, width, ENTRIES=max(1, TILE // block), BLOCK=block,
            num_warps=4 if block <= 1024 else 8,
        )  # fmt: skip
    return out
