"""The early sum of b_dec's gradient against autograd through the plain formulation."""

import pytest
import torch

from sae_lens_sparsemax.sae.queries import projected_query, split_norm


@pytest.mark.parametrize("unit_norm_query", [True, False])
def test_outputs_and_gradients_equal_the_plain_formulation(unit_norm_query: bool):
    torch.manual_seed(0)
    x = torch.randn(7, 5, dtype=torch.float64)
    b_dec = torch.randn(5, dtype=torch.float64, requires_grad=True)
    query_map = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, dtype=torch.float64)

    def gradients(query, factor):
        return torch.autograd.grad(((query * weight).sum(-1, keepdim=True) * factor.exp()).sum(), (b_dec, query_map))

    unit, factor = split_norm(x - b_dec, unit_norm_query)
    ours = projected_query((x - b_dec).detach(), b_dec, query_map, unit_norm_query)
    torch.testing.assert_close(ours[0], unit @ query_map)
    torch.testing.assert_close(ours[1], factor)
    for mine, autograds in zip(gradients(*ours), gradients(unit @ query_map, factor), strict=True):
        torch.testing.assert_close(mine, autograds, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("unit_norm_query", [True, False])
def test_zero_inputs_give_finite_gradients(unit_norm_query: bool):
    b_dec = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    query_map = torch.eye(3, dtype=torch.float64, requires_grad=True)
    query, factor = projected_query(torch.zeros(2, 3, dtype=torch.float64), b_dec, query_map, unit_norm_query)
    assert query.count_nonzero() == 0
    assert factor.count_nonzero() == 0
    (query.sum() * 0 + factor.sum()).backward()
    assert torch.isfinite(b_dec.grad).all()


def test_no_gradient_for_a_b_dec_that_was_not_subtracted():
    query_map = torch.eye(3, requires_grad=True)
    query, _ = projected_query(torch.randn(2, 3), None, query_map, True)
    query.sum().backward()
    assert query_map.grad is not None


def test_a_second_derivative_is_refused():
    b_dec, query_map = torch.zeros(3, requires_grad=True), torch.eye(3, requires_grad=True)
    query, factor = projected_query(torch.randn(2, 3), b_dec, query_map, True)
    with pytest.raises(ValueError, match="must be of first order"):
        torch.autograd.grad((query * factor).sum(), (b_dec, query_map), create_graph=True)
