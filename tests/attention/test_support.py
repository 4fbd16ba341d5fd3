"""The support against a float64 sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_sparsemax.attention.support import dense_threshold, select_support


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


def test_bad_input_is_refused_with_what_was_given():
    with pytest.raises(ValueError, match=r"shape \(N, M\).*\(3, 0\)"):
        select_support(torch.zeros(3, 0))
    with pytest.raises(ValueError, match=r"budget must be positive, got 0"):
        select_support(torch.zeros(3, 2), 0.0)
