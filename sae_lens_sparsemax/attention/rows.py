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
    """(n_rows + 1,) where each row's entries begin, of (nnz,) rows of entries, in order."""
    if row.is_cuda:
        # Counting would ask the GPU for the largest row first.
        return torch.searchsorted(row, torch.arange(n_rows + 1, device=row.device))
    return _counted_offsets(row, n_rows)


def _counted_offsets(row: torch.Tensor, n_rows: int) -> torch.Tensor:
    crow = torch.zeros(n_rows + 1, dtype=torch.int64, device=row.device)
    torch.cumsum(torch.bincount(row, minlength=n_rows), 0, out=crow[1:])
    return crow


def joined_offsets(offsets: list[torch.Tensor]) -> torch.Tensor:
    """(N + 1,) offsets of lists one after the other, of (n + 1,) each."""
    joined = [offsets[0]]
    for part in offsets[1:]:
        joined.append(part[1:] + joined[-1][-1])
    return torch.cat(joined)


def entry_rows(crow: torch.Tensor, n_entries: int) -> torch.Tensor:
    """(n_entries,) the row of each entry, of (N + 1,) CSR offsets."""
    return torch.repeat_interleave(crow.diff(), output_size=n_entries)


def row_counts(row: torch.Tensor, n_rows: int) -> torch.Tensor:
    """(n_rows,) how many of (nnz,) entries, in order, each row has."""
    return row_offsets(row, n_rows).diff() if row.is_cuda else torch.bincount(row, minlength=n_rows)


def weighted_rows(
    offsets: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    table: torch.Tensor,
    uneven: bool = False,
) -> torch.Tensor:
    """(N, d) Σ_j w_j table[index_j] over each of N lists.

    Args:
        offsets: (N + 1,) where each list begins. index: (nnz,) rows of the table.
        weights: (nnz,) and table: (M, d), of one float dtype.
        uneven: whether few lists may hold most of the entries, as those of concepts do.
    """
    if kernels.usable(table):
        from sae_lens_sparsemax.attention.kernels.weighted_rows import weighted_rows as run

        return run(offsets, index, weights, table, uneven)
    if table.device.type != "cpu" or not HAS_FAST_PRODUCTS:
        table, weights = table.detach(), weights.detach()  # or it keeps the books of a backward pass
        return embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
    # With beta = 0 the library behind the product writes each row once, into memory that nobody had to clear.
    out = table.new_empty(len(offsets) - 1, table.shape[1])
    return torch.addmm(out, _csr(offsets, index, weights, len(table)), table, beta=0, out=out)


def sampled_product(crow: torch.Tensor, col: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(nnz,) the inner products left[row] · right[col] of (N, d) and (M, d) at the entries of CSR lists."""
    if kernels.can_hold_rows(left):
        from sae_lens_sparsemax.attention.kernels.sampled_product import sampled_product as run

        return run(crow, col, left, right)
    if left.device.type == "cpu" and right.nbytes > CACHED and len(col) > len(right) > len(left):
        # Rows of the larger table are read one after the other, those of the smaller one from the cache.
        order, offsets = transpose(col, len(right))
        row = entry_rows(crow, len(col))
        by_column = torch.sparse.sampled_addmm(
            _csr(offsets, row[order], left.new_zeros(len(col)), len(left)), right, left.T
        )
        return left.new_empty(len(col)).index_copy_(0, order, by_column.values())
    pattern = _csr(crow, col, left.new_zeros(col.numel()), len(right))
    return torch.sparse.sampled_addmm(pattern, left, right.T).values()


def transpose(col: torch.Tensor, n_concepts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Order of the entries by concept, stable in the token, and (M + 1,) where each concept's begin."""
    if col.is_cuda:
        ranked, order = col.sort(stable=True)
        return order, row_offsets(ranked, n_concepts)
    return torch.argsort(col, stable=True), _counted_offsets(col, n_concepts)


def column_sums(col: torch.Tensor, values: torch.Tensor, n_columns: int) -> torch.Tensor:
    """(M,) sums of (nnz,) values, or (nnz, C) of which (M, C) are the sums, by their column, in a fixed order."""
    if not col.is_cuda:
        return values.new_zeros(n_columns, *values.shape[1:]).index_add_(0, col, values)
    order, offsets = transpose(col, n_columns)
    return torch.segment_reduce(values[order], "sum", offsets=offsets)


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
        return weighted_rows(offsets, index, weights, table, uneven=True)


def refuse_second_derivative() -> None:
    """Called in backward functions whose gradients autograd keeps no books of: a derivative of these would be wrong.

    torch's `once_differentiable` refuses later, and only where its error lies on the way to what is asked for.

    Raises:
        ValueError: the backward pass makes a graph of itself.
    """
    if torch.is_grad_enabled():
        raise ValueError(
            "derivatives of a training pass and of attention over lists must be of first order, with "
            "create_graph=False, got create_graph=True: take others of sae(x), which uses no lists"
        )


def _csr(crow: torch.Tensor, col: torch.Tensor, values: torch.Tensor, n_columns: int) -> torch.Tensor:
    return torch.sparse_csr_tensor(crow, col, values, (len(crow) - 1, n_columns), check_invariants=False)
