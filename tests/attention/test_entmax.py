"""Supports of α-entmax against its definition, evaluated on a float64 sort."""

import math

import pytest
import torch
from entmax import entmax_bisect
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_sparsemax.attention import support as support_module
from sae_lens_sparsemax.attention.cross_attention import attend
from sae_lens_sparsemax.attention.gate import gate, support_activations
from sae_lens_sparsemax.attention.support import select_support
from sae_lens_sparsemax.attention.traceable import traceable_gate
from tests.attention.test_support import DISTRIBUTIONS
from tests.support.members import slow_but

ALPHAS = [2.0, 2.5, 3.0, 5.0, 20.0, math.inf]
BUDGETS = [1.0, 0.3, 30.0]


def support_by_definition(z: torch.Tensor, budget: float, alpha: float) -> torch.Tensor:
    """z_(r) is in the support exactly if Σ_{j<r} (z_(j) − z_(r))^β < b; scores that tie cost each other nothing."""
    z = z.double()
    ranked = z.sort(1, descending=True).values
    rank = torch.arange(ranked.shape[1], device=z.device)
    # The cost grows with the rank, so the last that is affordable is found by halving.
    affordable = torch.zeros(len(ranked), 1, dtype=torch.int64, device=z.device)
    not_affordable = ranked.isfinite().sum(1, keepdim=True)
    for _ in range(ranked.shape[1].bit_length()):
        middle = (affordable + not_affordable) // 2
        above = torch.where(rank < middle, ranked - ranked.gather(1, middle), 0.0)
        cost = (above > 0).double() if math.isinf(alpha) else above.pow(1 / (alpha - 1))
        is_affordable = cost.sum(1, keepdim=True) < budget
        affordable = torch.where(is_affordable, middle, affordable)
        not_affordable = torch.where(is_affordable, not_affordable, middle)
    return z >= ranked.gather(1, affordable)


@pytest.mark.parametrize("max_active", [0.0, 1.0], ids=["whole rows", "two levels"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_supports_are_those_of_the_definition(name: str, alpha: float, max_active: float, monkeypatch):
    monkeypatch.setattr(support_module, "MAX_ACTIVE_CHUNKS", max_active)
    torch.manual_seed(0)
    z = DISTRIBUTIONS[name]()[:3]
    for budget in BUDGETS:
        support = select_support(z, budget, alpha)
        expected = support_by_definition(z, budget, alpha)
        assert torch.equal(torch.stack([support.row, support.col], 1), expected.nonzero())
        assert torch.equal(support.values, z[expected])


@settings(max_examples=100, deadline=None)
@given(
    m=st.integers(1, 200),
    alpha=st.sampled_from(ALPHAS),
    exponent=st.integers(-30, 30),
    offset=st.sampled_from([0.0, -5.0, 1e3]),
    ties=st.booleans(),
    double=st.booleans(),
    budget=st.sampled_from([0.1, 1.0, 7.0]),
    max_active=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_supports_of_any_shape_and_scale(m, alpha, exponent, offset, ties, double, budget, max_active, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(3, m, generator=generator, dtype=torch.float64 if double else torch.float32)
    z = (z * 4).round() / 4 if ties else z * 10.0**exponent
    z = z + offset
    z[1, m // 2] = 1e30
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support_module, "MAX_ACTIVE_CHUNKS", max_active)
        support = select_support(z, budget, alpha)
    expected = support_by_definition(z, budget, alpha)
    assert torch.equal(torch.stack([support.row, support.col], 1), expected.nonzero())


def test_infinity_is_topk_and_takes_what_ties_with_the_last():
    z = torch.randn(50, 3000)
    support = select_support(z, 1 / (1 / 49), math.inf)
    expected = torch.zeros_like(z, dtype=torch.bool).scatter_(1, z.topk(49).indices, True)
    assert torch.equal(torch.stack([support.row, support.col], 1), expected.nonzero())
    assert select_support(torch.tensor([[3.0, 1, 2, 2, 2, -torch.inf]]), 2, math.inf).col.tolist() == [0, 2, 3, 4]
    assert select_support(torch.tensor([[3.0, 1, -torch.inf]]), 9, math.inf).col.tolist() == [0, 1]


@pytest.mark.parametrize("alpha", [2.5, 3.0, 5.0])
def test_probabilities_are_those_of_entmax(alpha: float):
    z = torch.randn(9, 60, dtype=torch.float64)
    # entmax writes [(α − 1)·z − τ]^β; in our units that is the budget (α − 1)^−β of z itself.
    gate_scale = (alpha - 1) ** (1 / (alpha - 1))
    p = gate(z, gate_scale, probabilities=True, alpha=alpha)
    torch.testing.assert_close(p, entmax_bisect(z, alpha, n_iter=100), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(p.sum(-1), torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize("alpha", slow_but((2.0, 3.0, math.inf), ALPHAS))
def test_gradients_equal_finite_differences(alpha: float):
    z = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    for probabilities in (False, True) if math.isfinite(alpha) and alpha < 20 else (False,):
        assert torch.autograd.gradcheck(lambda z: gate(z, 0.4, probabilities, alpha), z)  # noqa: B023
        query, keys = (torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in (2, 7))
        bias = torch.zeros(7, dtype=torch.float64, requires_grad=True)

        def context(query, keys, bias):
            return attend(query, keys, keys, bias, gate_scale=0.4, probabilities=probabilities, alpha=alpha).context  # noqa: B023

        assert torch.autograd.gradcheck(context, (query, keys, bias))


@pytest.mark.parametrize("alpha", [3.0, 10.0, 20.0, 32.0])
@pytest.mark.parametrize("by", ["gate", "gate with a graph", "traced gate", "attention"])
def test_gradients_are_right_where_a_score_barely_enters(by: str, alpha: float):
    torch.manual_seed(0)
    z, weights = torch.randn(2, 200, 12, dtype=torch.float64)
    z.requires_grad_()
    if by == "attention":
        acts = attend(z, torch.eye(12, dtype=torch.float64), None, gate_scale=0.5, probabilities=True, alpha=alpha).acts
        acts = acts.to_dense()
    else:
        acts = (traceable_gate if by == "traced gate" else gate)(z, 0.5, True, alpha)
    (found,) = torch.autograd.grad((acts * weights).sum(), z, create_graph=by == "gate with a graph")
    support = select_support(z.detach(), 2.0, alpha)
    growth = torch.zeros_like(z).index_put_((support.row, support.col), support.above_tau ** (1 / (alpha - 1) - 1))
    # Differences of gradients, pair by pair, of which nothing cancels.
    pairs = growth[:, :, None] * growth[:, None] * (weights[:, :, None] - weights[:, None])
    expected = pairs.sum(-1) / growth.sum(-1, keepdim=True) * 0.5 / (alpha - 1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("alpha", [2.0, 2.5, 3.0, 5.0])
@pytest.mark.parametrize("of", [gate, traceable_gate])
def test_second_and_third_derivatives_equal_finite_differences(of, alpha: float):
    torch.manual_seed(0)
    z = (0.3 * torch.randn(2, 5, dtype=torch.float64)).requires_grad_()
    weights = torch.randn_like(z)

    def gradient(z):
        return torch.autograd.grad((of(z, 1.3, True, alpha) * weights).sum(), z, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(lambda z: of(z, 1.3, True, alpha), z)
    if alpha > 2:  # sparsemax is linear where its support does not change
        assert torch.autograd.gradgradcheck(gradient, z)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", ["narrow gaussian", "heavy-tailed", "one-hot", "constant", "ties", "large offset"])
def test_the_traced_gate_selects_the_same(name: str, alpha: float):
    torch.manual_seed(0)
    z = DISTRIBUTIONS[name]()[:3]
    z[:, -1] = -torch.inf
    for budget in BUDGETS:
        assert torch.equal(traceable_gate(z, 1 / budget, False, alpha), gate(z, 1 / budget, False, alpha))


@pytest.mark.parametrize("alpha", [2.5, 3.0, 5.0])
def test_probabilities_and_their_derivatives_are_the_same_when_traced(alpha: float):
    z, weights, direction = torch.randn(3, 4, 30, dtype=torch.float64)
    traced = lambda z: traceable_gate(z, 0.4, True, alpha)  # noqa: E731
    torch.testing.assert_close(traced(z), gate(z, 0.4, True, alpha))
    ordinary = z.clone().requires_grad_()
    (gate(ordinary, 0.4, True, alpha) * weights).sum().backward()
    torch.testing.assert_close(torch.func.grad(lambda z: (traced(z) * weights).sum())(z), ordinary.grad)
    step = 1e-7 * direction
    difference = (traced(z + step) - traced(z - step)) / 2e-7
    torch.testing.assert_close(torch.func.jvp(traced, (z,), (direction,))[1], difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [3.0, 20.0, 32.0])
def test_probabilities_of_any_scale_sum_to_one(alpha: float):
    for scale in (1e-30, 1.0, 1e30):
        support = select_support(scale * torch.randn(20, 500), 3.0, alpha)
        p = support_activations(support, probabilities=True)
        assert bool((p > 0).all())
        total = torch.segment_reduce(p, "sum", offsets=support.crow)
        torch.testing.assert_close(total, torch.ones(20))


def test_what_is_no_gate_is_refused():
    z = torch.randn(3, 9)
    for alpha in (1.5, 0.0, -torch.inf, torch.nan):
        with pytest.raises(ValueError, match="alpha must be at least 2, got"):
            gate(z, alpha=alpha)
        with pytest.raises(ValueError, match="alpha must be at least 2, got"):
            select_support(z, alpha=alpha)
    for alpha in (33.0, 1e5, math.inf):
        with pytest.raises(
            ValueError, match=f"alpha must be at most 32 where activations are probabilities, got {alpha}"
        ):
            gate(z, probabilities=True, alpha=alpha)
