"""Gradients of the scores on the support and of the queries, in one pass over the concepts that were selected.

For token n with support S_n, upstream gradients da (of the activations) and dy_n (of the context P V):

    d_acts_i   = da_i + ⟨dy_n, V_i⟩                                    i in S_n
    d_scores_i = d_acts_i, or g·(d_acts_i − mean over S_n) where activations are probabilities
    d_query_n  = Σ_i d_scores_i · K_i

One program per token holds dy_n and d_query_n in registers and streams the rows V_i and K_i, once where they are the
same matrix: O(nnz·d) reads, which is nearly all its time. The mean is known only at the end, so the program sums
(d_acts_i − c)·K_i and K_i side by side and combines them; c is the first entry's gradient, so that the two sums do
not cancel when all gradients share a large common part. Centring d_scores itself is left to one elementwise pass.

But: whole rows in registers, so d is at most MAX_WIDTH.
"""

# Kernels are not quite Python: launches take numbers for constexpr and options beyond the parameters, branches on
# constexpr leave nothing unbound, and the library's own annotations are loose.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Elements of V per tile: 32 registers of 128 threads, with four rows in flight at d = 768.
TILE = 4096


@triton.jit
def _score_gradients(
    crow, col, grad_acts, grad_context, keys, values, d_acts, row_mean, d_query,
    width, SHARED: tl.constexpr, CENTRED: tl.constexpr, ENTRIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    begin = tl.load(crow + row)
    end = tl.load(crow + row + 1)
    dim = tl.arange(0, BLOCK)
    inside = dim < width
    dy = tl.load(grad_context + row * width + dim, mask=inside, other=0.0)
    weighted = tl.zeros_like(dy)
    if CENTRED:
        key_sum = tl.zeros_like(dy)
        first = tl.load(col + begin, mask=begin < end, other=0)
        first_value = tl.load(values + first * width + dim, mask=inside, other=0.0)
        pivot = tl.load(grad_acts + begin, mask=begin < end, other=0.0) + tl.sum(first_value * dy, 0)
        grad_sum = tl.zeros([ENTRIES], dy.dtype)
    for start in range(begin, end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        listed = entry < end
        concept = tl.load(col + entry, mask=listed, other=0)
        at = concept[:, None] * width + dim[None, :]
        mask = listed[:, None] & inside[None, :]
        value = tl.load(values + at, mask=mask, other=0.0)
        grad = tl.load(grad_acts + entry, mask=listed, other=0.0) + tl.sum(value * dy[None, :], 1)
        tl.store(d_acts + entry, grad, mask=listed)
        key = value if SHARED else tl.load(keys + at, mask=mask, other=0.0)
        if CENTRED:
            grad = tl.where(listed, grad - pivot, 0.0)
            grad_sum += grad
            key_sum += tl.sum(key, 0)
        weighted += tl.sum(grad[:, None] * key, 0)
    if CENTRED:
        mean = tl.sum(grad_sum, 0) / tl.maximum(end - begin, 1).to(dy.dtype)
        tl.store(row_mean + row, pivot + mean)
        weighted -= mean * key_sum
    tl.store(d_query + row * width + dim, weighted, mask=inside)


def score_gradients(
    crow: torch.Tensor,
    col: torch.Tensor,
    grad_acts: torch.Tensor,
    grad_context: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    gate_scale: float,
    probabilities: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dL/d(scores) on the support and dL/d(query).

    Args:
        crow, col: (N + 1,) and (nnz,) int64, the supports. grad_acts: (nnz,), grad_context: (N, d), upstream.
        keys, values: (M, d); the same tensor where concepts are shared, which then is read once.
        gate_scale: g > 0. probabilities: whether activations are g·z − τ, and gradients centred.

    Returns:
        d_scores (nnz,) and d_query (N, d).
    """
    shared = keys is values
    grad_acts, grad_context = grad_acts.contiguous(), grad_context.contiguous()
    keys, values = keys.contiguous(), values.contiguous()
    n_rows, width = grad_context.shape
    d_acts, d_query = torch.empty_like(grad_acts), torch.empty_like(grad_context)
    row_mean = grad_context.new_empty(n_rows)
    if n_rows == 0:
        return d_acts, d_query
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(grad_context):
        _score_gradients[(n_rows,)](
            crow, col, grad_acts, grad_context, keys, values, d_acts, row_mean, d_query,
            width, SHARED=shared, CENTRED=probabilities, ENTRIES=max(1, TILE // block), BLOCK=block,
            num_warps=4 if block <= 1024 else 8,
        )  # fmt: skip
    if not probabilities:
        return d_acts, d_query
    # Here rather than in the kernel, where a float argument is rounded to float32.
    mean = torch.repeat_interleave(row_mean, crow.diff(), output_size=len(d_acts))
    return d_acts.sub_(mean).mul_(gate_scale), d_query.mul_(gate_scale)
