"""Rows in bfloat16 and what that costs, in one read: for `attention.screening`."""

# Kernels are not quite Python: launches take numbers for constexpr and options beyond the parameters.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _round_rows(rows, rounded, norm, lost, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, BLOCK)
    inside = dim < width
    exact = tl.load(rows + row * width + dim, mask=inside, other=0.0)
    near = exact.to(tl.bfloat16)
    tl.store(rounded + row * width + dim, near, mask=inside)
    off = exact - near.to(tl.float32)
    tl.store(norm + row, tl.sqrt(tl.sum(exact * exact, 0)))
    tl.store(lost + row, tl.sqrt(tl.sum(off * off, 0)))


def round_rows(rows: torch.Tensor, rounded: torch.Tensor, norm: torch.Tensor, lost: torch.Tensor) -> None:
    """Write (n, d) float32 rows in bfloat16, their norms and those of what rounding changed into given memory.

    All contiguous; d is at most MAX_WIDTH. Norms err by a share of far less than 2⁻¹⁰.
    """
    n_rows, width = rows.shape
    if n_rows == 0:
        return
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(rows):
        _round_rows[(n_rows,)](rows, rounded, norm, lost, width, BLOCK=block, num_warps=4 if block <= 2048 else 8)
