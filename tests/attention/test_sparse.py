"""Sparse activations against dense ones, and their gradients against finite differences."""

import pytest
import torch
from torch.autograd import gradcheck

from sae_lens_sparsemax.attention.sparse import added, coo, entries, scale_columns, scale_rows


def test_gradients_of_a_matrix_are_those_of_its_entries():
    index = torch.tensor([[0, 0, 2], [0, 2, 1]])
    values, weight = torch.randn(3, requires_grad=True), torch.randn(3, 3)
    for used in (coo(index, values, (3, 3)).to_dense() * weight, coo(index, values, (3, 3)) * weight.to_sparse()):
        (grad,) = torch.autograd.grad(used.sum(), values)
        torch.testing.assert_close(grad, weight[index[0], index[1]])


def random_matrix(n: int, m: int, share: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, nnz) places, in order, and (nnz,) float64 values with a gradient."""
    index = torch.stack((torch.rand(n, m) < share).nonzero(as_tuple=True))
    return index, torch.randn(index.shape[1], dtype=torch.float64, requires_grad=True)


def test_rows_and_columns_are_scaled_as_those_of_the_dense_matrix():
    index, values = random_matrix(6, 5)
    rows, columns = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 1), (5,)))
    matrix = coo(index, values, (6, 5))
    assert torch.equal(scale_rows(matrix, rows).to_dense(), matrix.to_dense() * rows)
    assert torch.equal(scale_columns(matrix, columns).to_dense(), matrix.to_dense() * columns)
    assert gradcheck(lambda v, f: scale_rows(coo(index, v, (6, 5)), f).to_dense(), (values, rows))
    assert gradcheck(lambda v, f: scale_columns(coo(index, v, (6, 5)), f).to_dense(), (values, columns))


def test_rows_without_an_entry_have_a_factor_without_a_gradient():
    values, factor = torch.ones(2, requires_grad=True), torch.ones(4, 1, requires_grad=True)
    scale_rows(coo(torch.tensor([[1, 1], [0, 2]]), values, (4, 3)), factor).to_dense().sum().backward()
    assert factor.grad.flatten().tolist() == [0, 2, 0, 0]


def test_entries_that_are_kept_alone_have_a_gradient():
    index, values = random_matrix(6, 5)
    keep = values.detach() > 0
    matrix = coo(index, values, (6, 5))
    assert torch.equal(entries(matrix, keep).to_dense(), matrix.to_dense().relu())
    assert gradcheck(lambda v: entries(coo(index, v, (6, 5)), keep).to_dense(), (values,))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_matrices_add_up_over_the_union_of_their_entries(n: int, share: float):
    torch.manual_seed(0)
    index, values = zip(*(random_matrix(6, 5, share) for _ in range(n)), strict=True)
    matrices = [coo(where, each, (6, 5)) for where, each in zip(index, values, strict=True)]
    total = added(matrices)
    assert total.is_coalesced() and torch.equal(total.indices(), total.detach().coalesce().indices())
    torch.testing.assert_close(total.to_dense(), sum(each.to_dense() for each in matrices))
    places = {tuple(place) for where in index for place in where.T.tolist()}
    assert total.indices().shape[1] == len(places)
    if share:
        assert gradcheck(
            lambda *given: added([coo(w, v, (6, 5)) for w, v in zip(index, given, strict=True)]).to_dense(), values
        )


def test_a_sum_with_a_dense_matrix_is_dense():
    index, values = random_matrix(6, 5)
    dense = torch.randn(6, 5, dtype=torch.float64)
    matrix = coo(index, values, (6, 5))
    torch.testing.assert_close(added([matrix, dense]), matrix.to_dense() + dense)
