"""Sums over lists of rows against dense products."""

import torch

from sae_lens_sparsemax.attention import rows
from sae_lens_sparsemax.attention.rows import column_sums, row_counts, sampled_product, transpose, weighted_rows


def test_weighted_rows_is_a_sparse_product():
    table, offsets = torch.randn(5, 3), torch.tensor([0, 2, 2, 3])
    index, weights = torch.tensor([4, 1, 0]), torch.tensor([0.5, 2.0, -1.0])
    expected = torch.stack([0.5 * table[4] + 2 * table[1], torch.zeros(3), -table[0]])
    torch.testing.assert_close(weighted_rows(offsets, index, weights, table), expected)


def test_lists_of_a_matrix_are_sampled_transposed_counted_and_summed_as_the_matrix_is():
    dense = torch.tensor([[0.0, 2.0, -1.0], [0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    row, col = dense.nonzero(as_tuple=True)
    crow = torch.tensor([0, 2, 2, 4])
    assert row_counts(row, 3).tolist() == [2, 0, 2]
    assert torch.equal(column_sums(col, dense[row, col], 3), dense.sum(0))
    left, right = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(sampled_product(crow, col, left, right), (left @ right.T)[row, col])
    order, offsets = transpose(col, 3)
    assert torch.equal(dense[row, col][order], torch.tensor([3.0, 2.0, -1.0, 4.0])) and offsets.tolist() == [0, 1, 2, 4]


def test_products_sampled_in_the_order_of_a_large_table_are_the_same_to_the_bit(monkeypatch):
    left, right = torch.randn(8, 37), torch.randn(50, 37)
    is_sampled = torch.rand(8, 50) < 0.6
    row, col = is_sampled.nonzero(as_tuple=True)
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), is_sampled.sum(1).cumsum(0)])
    assert len(col) > len(right)
    found = sampled_product(crow, col, left, right)
    torch.testing.assert_close(found, (left @ right.T)[row, col])
    monkeypatch.setattr(rows, "CACHED", 0)
    assert torch.equal(sampled_product(crow, col, left, right), found)
