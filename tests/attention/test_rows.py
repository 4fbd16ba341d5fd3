"""Sums over lists of rows against dense products."""

import torch

from sae_lens_sparsemax.attention import rows
from sae_lens_sparsemax.attention.rows import (
    coo,
    sampled_product,
    scale_rows,
    transpose,
    weighted_rows,
)


def test_weighted_rows_is_a_sparse_product():
    table, offsets = torch.randn(5, 3), torch.tensor([0, 2, 2, 3])
    index, weights = torch.tensor([4, 1, 0]), torch.tensor([0.5, 2.0, -1.0])
    expected = torch.stack([0.5 * table[4] + 2 * table[1], torch.zeros(3), -table[0]])
    torch.testing.assert_close(weighted_rows(offsets, index, weights, table), expected)


def test_gradients_of_a_matrix_are_those_of_its_entries():
    index = torch.tensor([[0, 0, 2], [0, 2, 1]])
    values, weight = torch.randn(3, requires_grad=True), torch.randn(3, 3)
    for used in (coo(index, values, (3, 3)).to_dense() * weight, coo(index, values, (3, 3)) * weight.to_sparse()):
        (grad,) = torch.autograd.grad(used.sum(), values)
        torch.testing.assert_close(grad, weight[index[0], index[1]])


def test_lists_of_a_matrix_scale_sample_and_transpose_as_the_matrix_does():
    dense = torch.tensor([[0.0, 2.0, -1.0], [0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    row, col = dense.nonzero(as_tuple=True)
    crow, factor = torch.tensor([0, 2, 2, 4]), torch.tensor([[2.0], [1.0], [-1.0]])
    matrix = coo(torch.stack([row, col]), dense[row, col], (3, 3))
    assert torch.equal(scale_rows(matrix, factor).to_dense(), scale_rows(dense, factor))
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
