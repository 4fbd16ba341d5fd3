"""Sparse activations as torch's COO matrices: made, scaled, thinned out and added up, with gradients over their lists.

torch's own rules find entries again that are known to be where they are, and add gradients up by sorting. Here every
gradient goes the way its value came, and every sum has a fixed order.
"""

from __future__ import annotations

import torch

from sae_lens_sparsemax.attention.rows import row_offsets


def coo(index: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The sparse COO matrix of (2, nnz) indices in row order, each once, and (nnz,) values."""
    return _Coo.apply(index, values, shape)  # type: ignore[no-any-return]


def scale_rows(matrix: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """(N, M) sparse COO (coalesced) or dense, each row times its (N, 1) factor."""
    if not matrix.is_sparse:
        return matrix * factor
    index = matrix.indices()
    return coo(index, matrix.values() * spread(factor, index[0]), (matrix.shape[0], matrix.shape[1]))


def spread(factor: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """(nnz,) the (N, 1) number of each entry's row, of (nnz,) rows in order."""
    return _Spread.apply(factor, row)  # type: ignore[no-any-return]


def scale_columns(matrix: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """(N, M) sparse COO (coalesced) or (..., M) dense, each column times its number of (M,), if there are any."""
    if scale is None or not matrix.is_sparse:
        return matrix if scale is None else matrix * scale
    index = matrix.indices()
    return coo(index, matrix.values() * scale[index[1]], (matrix.shape[0], matrix.shape[1]))


def entries(matrix: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """(N, M) sparse COO (coalesced) with those of its (nnz,) entries that are to be kept."""
    kept = keep.nonzero().squeeze(1)
    shape = (matrix.shape[0], matrix.shape[1])
    return coo(matrix.indices().index_select(1, kept), _Pick.apply(matrix.values(), kept), shape)


def added(matrices: list[torch.Tensor]) -> torch.Tensor:
    """The sum of (N, M) matrices, over the union of their entries if all are sparse COO, dense if one is."""
    if not all(each.is_sparse for each in matrices):
        return torch.stack([each.to_dense() for each in matrices]).sum(0)
    n_rows, n_columns = matrices[0].shape
    places = [each.indices()[0] * n_columns + each.indices()[1] for each in matrices]
    place, order = torch.cat(places).sort(stable=True)
    is_first = torch.ones_like(place, dtype=torch.bool)
    torch.ne(place[1:], place[:-1], out=is_first[1:])
    first = is_first.nonzero().squeeze(1)
    offsets = torch.cat([first, first.new_tensor([len(place)])])
    values = _Runs.apply(torch.cat([each.values() for each in matrices]), order, offsets)
    place = place[first]
    row = torch.div(place, max(1, n_columns), rounding_mode="floor")
    return coo(torch.stack([row, place - row * n_columns]), values, (n_rows, n_columns))


class _Coo(torch.autograd.Function):
    @staticmethod
    def forward(ctx, index, values, shape):
        ctx.save_for_backward(index)
        return torch.sparse_coo_tensor(index, values, shape, is_coalesced=True, check_invariants=False)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        (index,), grad = ctx.saved_tensors, grads[0]
        if not grad.is_sparse:
            return None, grad[index[0], index[1]], None
        grad = grad.coalesce()
        # torch's own way looks every entry up, although gradients of values come with the indices of these.
        if not _same(grad.indices(), index):
            pattern = torch.sparse_coo_tensor(index, index[0], grad.shape, is_coalesced=True, check_invariants=False)
            grad = grad.sparse_mask(pattern)
        return None, grad.values(), None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, factor, row):
        ctx.save_for_backward(row)
        ctx.n_rows = len(factor)
        return factor.squeeze(1)[row]

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        (row,), grad = ctx.saved_tensors, grads[0]
        total = torch.segment_reduce(grad, "sum", offsets=row_offsets(row, ctx.n_rows))
        return total.unsqueeze(1), None


class _Pick(torch.autograd.Function):
    """Values at places that are all different."""

    @staticmethod
    def forward(ctx, values, place):
        ctx.save_for_backward(place)
        ctx.n_values = len(values)
        return values[place]

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        (place,), grad = ctx.saved_tensors, grads[0]
        return grad.new_zeros(ctx.n_values).index_copy_(0, place, grad), None


class _Runs(torch.autograd.Function):
    """Sums of runs of values, once these are in order."""

    @staticmethod
    def forward(ctx, values, order, offsets):
        ctx.save_for_backward(order, offsets)
        return torch.segment_reduce(values[order], "sum", offsets=offsets)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        (order, offsets), grad = ctx.saved_tensors, grads[0]
        spread_out = torch.repeat_interleave(grad, offsets.diff(), output_size=len(order))
        return torch.empty_like(spread_out).index_copy_(0, order, spread_out), None, None


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two (2, nnz) index tensors are equal; that they are one, as usual, shows without a look at them."""
    is_one = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return one.shape == other.shape and (is_one or torch.equal(one, other))
