"""The projection against a float64 sort, entmax, and its own mathematics."""

import pytest
import torch
from entmax import sparsemax as entmax_sparsemax
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_sparsemax.attention.sparsemax import dense_threshold, gate, select_support, sparsemax


def sorted_support(z: torch.Tensor, budget: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask, τ) by sorting in float64: Alg. 1 of the paper, with its 1 replaced by the budget."""
    ranked = z.double().sort(-1, descending=True).values
    rank = torch.arange(1, z.shape[1] + 1, dtype=torch.float64)
    count = (ranked + (budget - ranked.cumsum(-1)) / rank > 0).sum(-1, keepdim=True)
    tau = (ranked.cumsum(-1).gather(1, count - 1) - budget) / count
    return z.double() > tau, tau.squeeze(1)


def found_support(z: torch.Tensor, budget: float = 1.0) -> torch.Tensor:
    support = select_support(z, budget)
    mask = torch.zeros(z.shape, dtype=torch.bool)
    mask[support.row, support.col] = True
    assert mask.sum() == support.col.numel()
    assert torch.equal(support.values, z[support.row, support.col].to(support.values.dtype))
    return mask


def clustered(n: int, m: int) -> torch.Tensor:
    return torch.randn(n, 7).repeat_interleave(m // 7 + 1, 1)[:, :m] + 1e-3 * torch.randn(n, m)


DISTRIBUTIONS = {
    "gaussian": lambda: torch.randn(64, 12288),
    "narrow gaussian": lambda: 0.05 * torch.randn(64, 12288),
    "dense gaussian": lambda: 0.002 * torch.randn(16, 3000),
    "heavy-tailed": lambda: torch.distributions.StudentT(1.5).sample((64, 5001)),
    "clustered": lambda: clustered(64, 3333),
    "one-hot": lambda: 5 * torch.eye(200),
    "constant": lambda: torch.full((3, 777), 3.0),
    "zeros": lambda: torch.zeros(3, 64),
    "nearly dense": lambda: 1e-6 * torch.randn(8, 4097),
    "large offset": lambda: 0.1 * torch.randn(32, 9000) + 1e4,
    "large negative offset": lambda: 0.1 * torch.randn(32, 9000) - 1e4,
    "ties": lambda: torch.randint(-3, 3, (64, 1000)).float() / 4,
    "all but one tied": lambda: torch.cat([torch.ones(5, 1), torch.zeros(5, 999)], 1),
    "sorted": lambda: torch.linspace(0, 1, 8200).repeat(4, 1),
    "one column": lambda: torch.randn(9, 1),
    "one row": lambda: torch.randn(1, 8193),
}


@pytest.mark.parametrize("budget", [1.0, 0.01, 30.0])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_support_and_threshold_equal_a_float64_sort(name: str, budget: float):
    torch.manual_seed(0)
    z = DISTRIBUTIONS[name]()
    mask, tau = sorted_support(z, budget)
    assert torch.equal(found_support(z, budget), mask)
    torch.testing.assert_close(select_support(z, budget).tau, tau, rtol=1e-12, atol=1e-8)
    torch.testing.assert_close(dense_threshold(z, budget), tau, rtol=1e-12, atol=1e-8)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 5),
    m=st.integers(1, 300),
    scale=st.sampled_from([1e-6, 1e-2, 0.3, 1.0, 100.0]),
    offset=st.sampled_from([0.0, -5.0, 1e3]),
    budget=st.sampled_from([0.1, 1.0, 7.0]),
    seed=st.integers(0, 2**31),
)
def test_support_equals_a_sort_for_any_shape(n, m, scale, offset, budget, seed):
    z = scale * torch.randn(n, m, generator=torch.Generator().manual_seed(seed)) + offset
    if n == 0:
        assert select_support(z, budget).crow.tolist() == [0]
    else:
        assert torch.equal(found_support(z, budget), sorted_support(z, budget)[0])


def test_the_papers_algorithm_by_hand():
    # Σ over {0.8, 0.6} is 1.4, so τ = (1.4 − 1)/2 = 0.2 and 0.1 stays out.
    torch.testing.assert_close(sparsemax(torch.tensor([0.8, 0.1, 0.6])), torch.tensor([0.6, 0.0, 0.4]))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_sparsemax_equals_entmax_along_any_dimension(dim: int):
    z = torch.randn(4, 33, 9, dtype=torch.float64)
    torch.testing.assert_close(sparsemax(z, dim), entmax_sparsemax(z, dim))


def test_sparsemax_is_a_projection_onto_the_simplex():
    z = torch.randn(20, 500, dtype=torch.float64)
    p = sparsemax(z)
    torch.testing.assert_close(p.sum(-1), torch.ones(20, dtype=torch.float64))
    assert (p >= 0).all()
    torch.testing.assert_close(sparsemax(p), p)
    torch.testing.assert_close(sparsemax(z + 3.0), p)


def test_minus_infinity_masks_an_entry():
    z = torch.tensor([[0.3, -torch.inf, 0.2], [-torch.inf, -torch.inf, -5.0]])
    torch.testing.assert_close(sparsemax(z), torch.tensor([[0.55, 0.0, 0.45], [0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("probabilities", [True, False])
def test_gradients_of_the_gate_are_those_of_finite_differences(probabilities: bool):
    z = torch.randn(3, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: gate(z, 1.7, probabilities), z)


def test_gate_scale_acts_as_a_multiple_of_the_scores():
    z = torch.randn(6, 300, dtype=torch.float64)
    torch.testing.assert_close(gate(z, 2.5), sparsemax(2.5 * z))
    scores = gate(z, 2.5, probabilities=False)
    assert torch.equal(scores, torch.where(sparsemax(2.5 * z) > 0, z, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_selected_in_float32_and_returned_as_they_came(dtype: torch.dtype):
    z = torch.randn(5, 700).to(dtype)
    p = sparsemax(z)
    assert p.dtype == dtype
    assert torch.equal(p > 0, sparsemax(z.float()) > 0)


def test_bad_input_is_refused_with_what_was_given():
    with pytest.raises(ValueError, match=r"shape \(N, M\).*\(3, 0\)"):
        select_support(torch.zeros(3, 0))
    with pytest.raises(ValueError, match=r"budget must be positive, got 0"):
        select_support(torch.zeros(3, 2), 0.0)
    with pytest.raises(ValueError, match="gate_scale must be positive, got -1"):
        gate(torch.zeros(3), -1.0)
    with pytest.raises(ValueError, match="scalar"):
        gate(torch.tensor(1.0))
