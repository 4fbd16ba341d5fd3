"""Sums over lists of rows: sparse matrices in CSR form against tables, and the lists turned from rows to columns.

Over CSR lists (a token's concepts) these are the context and dL/d(query), over the transposed (CSC) lists (a concept's
tokens) dL/d(keys) and dL/d(values). Every sum has a fixed order on the CPU and in the kernels.
"""

from __future__ import annotations

import warnings
from itertools import accumulate

import torch
from torch.nn.functional import embedding_bag

from sae_lens_sparsemax.attention import kernels

# torch says once per process that its CSR tensors are in beta, which would surprise in the middle of a training run.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], torch.zeros(0), (1, 1), check_invariants=False)


# Whose sparse products are as fast as `embedding_bag`, which takes half of their time where vectors are shorter.
HAS_FAST_PRODUCTS = torch.backends.cpu.get_cpu_capability() == "AVX512"


# Bytes of a table whose rows a processor finds again in its caches, in whatever order they are asked for.
CACHED = 2**24


def row_offsets(row: torch.Tensor, n_rows: int) -> torch.Tensor:
    """(n_rows + 1,) where each row's entries begin once (nnz,) entries are sorted by their row."""
    crow = torch.zeros(n_rows + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(row, minlength=n_rows), 0, out=crow[1:])
    return crow


def weighted_rows(
    offsets: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    table: torch.Tensor,
) -> torch.Tensor:
    """(N, d) Σ_j w_j table[index_j] over each of N lists.

    Args:
        offsets: (N + 1,) where each list begins. index: (nnz,) rows of the table.
        weights: (nnz,) and table: (M, d), of one float dtype.
    """
    if kernels.usable(table):
        from sae_lens_sparsemax.attention.kernels.weighted_rows import weighted_rows as run

        return run(offsets, index, weights, table)
    if table.device.type != "cpu" or not HAS_FAST_PRODUCTS:
        table, weights = table.detach(), weights.detach()  # or it keeps the books of a backward pass
        return embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
    # With beta = 0 the library behind the product writes each row once, into memory that nobody had to clear.
    out = table.new_empty(len(offsets) - 1, table.shape[1])
    return torch.addmm(out, _csr(offsets, index, weights, len(table)), table, beta=0, out=out)


def sampled_product(crow: torch.Tensor, col: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(nnz,) the inner products left[row] · right[col] of (N, d) and (M, d) at the entries of CSR lists."""
    if left.device.type == "cpu" and right.nbytes > CACHED and len(col) > len(right) > len(left):
        # Rows of the larger table are read one after the other, those of the smaller one from the cache.
        order, offsets = transpose(col, len(right))
        row = torch.repeat_interleave(crow.diff(), output_size=len(col))
        by_column = torch.sparse.sampled_addmm(
            _csr(offsets, row[order], left.new_zeros(len(col)), len(left)), right, left.T
        )
        return left.new_empty(len(col)).index_copy_(0, order, by_column.values())
    pattern = _csr(crow, col, left.new_zeros(col.numel()), len(right))
    return torch.sparse.sampled_addmm(pattern, left, right.T).values()


def transpose(col: torch.Tensor, n_concepts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Order of the entries by concept, stable in the token, and (M + 1,) where each concept's begin."""
    return torch.argsort(col, stable=True), row_offsets(col, n_concepts)


class ColumnSums:
    """(M, d) sums Σ w table[row] over the columns of several lists, made at once when all have been added.

    Lists of one backward pass belong together; what another one left, which asked for other gradients, is dropped.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[torch.Tensor, ...]] = []
        self._of = -1

    def add(self, col: torch.Tensor, row: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> None:
        """(nnz,) columns, rows and weights, (N, d) table."""
        if self._of != torch._C._current_graph_task_id():
            self._parts, self._of = [], torch._C._current_graph_task_id()
        self._parts.append((col, row, weights, table))

    def total(self, n_columns: int) -> torch.Tensor | None:
        """The sums, once; None where nothing was added."""
        parts, self._parts = self._parts, []
        if not parts or self._of != torch._C._current_graph_task_id():
            return None
        col, row, weights, tables = zip(*parts, strict=True)
        order, offsets = transpose(torch.cat(col), n_columns)
        first = accumulate([0, *(len(table) for table in tables[:-1])])
        index = torch.cat([each + start for each, start in zip(row, first, strict=True)])[order]
        weights, table = torch.cat(weights)[order], torch.cat(tables)
        # Nobody needs the single ones any more, and the sums are as much memory again.
        del parts, tables
        return weighted_rows(offsets, index, weights, table)


def coo(index: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The sparse COO matrix of (2, nnz) indices in row order, each once, and (nnz,) values."""
    return _Coo.apply(index, values, shape)  # type: ignore[no-any-return]


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
        if not torch.equal(grad.indices(), index):
            pattern = torch.sparse_coo_tensor(index, index[0], grad.shape, is_coalesced=True, check_invariants=False)
            grad = grad.sparse_mask(pattern)
        return None, grad.values(), None


def scale_rows(matrix: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """(N, M) sparse COO (coalesced) or dense, each row times its (N, 1) factor."""
    if not matrix.is_sparse:
        return matrix * factor
    index = matrix.indices()
    return coo(index, matrix.values() * factor.squeeze(-1)[index[0]], (matrix.shape[0], matrix.shape[1]))


def scale_columns(matrix: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """(N, M) sparse COO (coalesced) or (..., M) dense, each column times its number of (M,), if there are any."""
    if scale is None or not matrix.is_sparse:
        return matrix if scale is None else matrix * scale
    index = matrix.indices()
    return coo(index, matrix.values() * scale[index[1]], (matrix.shape[0], matrix.shape[1]))


def entries(matrix: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """(N, M) sparse COO (coalesced) with those of its (nnz,) entries that are to be kept."""
    return coo(matrix.indices()[:, keep], matrix.values()[keep], (matrix.shape[0], matrix.shape[1]))


def _csr(crow: torch.Tensor, col: torch.Tensor, values: torch.Tensor, n_columns: int) -> torch.Tensor:
    return torch.sparse_csr_tensor(crow, col, values, (len(crow) - 1, n_columns), check_invariants=False)
