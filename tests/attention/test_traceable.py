"""The gate without branches against the oracles of the support and against the gate of ordinary calls."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from sae_lens_sparsemax.attention.gate import gate, sparsemax
from sae_lens_sparsemax.attention.traceable import is_traced, traceable_gate
from tests.attention.test_support import DISTRIBUTIONS, exact_support, sorted_support


@pytest.mark.parametrize("budget", [1.0, 0.01, 30.0])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_supports_equal_a_float64_sort(name: str, budget: float):
    torch.manual_seed(0)
    z = DISTRIBUTIONS[name]()
    expected = sorted_support(z, budget)[0]
    assert torch.equal(traceable_gate(z, 1 / budget, False), torch.where(expected, z, 0))
    # A probability on the support may be rounded to zero beside others.
    assert not traceable_gate(z, 1 / budget, True)[~expected].any()


@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    exponent=st.integers(-30, 300),
    budget=st.sampled_from([1e-6, 0.7, 1.00005, 1e6]),
    steps=st.booleans(),
    width=st.sampled_from([6, 64, 70]),
    seed=st.integers(0, 2**31),
)
def test_scores_of_any_finite_size_have_the_exact_support(dtype, exponent, budget, steps, width, seed):
    generator = torch.Generator().manual_seed(seed)
    exponent = min(exponent, 38) if dtype == torch.float32 else exponent
    if steps:  # neighbours at the limit of the dtype, and ties
        z = 10.0**exponent * (1 + torch.finfo(dtype).eps * torch.randint(-4, 2, (3, width), generator=generator))
    else:
        z = 10.0**exponent * torch.randn(3, width, generator=generator, dtype=torch.float64)
    z = z.to(dtype).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
    z[0, 3] = z[0, 5] = z[0].max()
    acts = traceable_gate(z, 1 / budget, True)
    for row, (columns, above) in enumerate(exact_support(values, budget) for values in z.tolist()):
        expected = torch.zeros(width, dtype=dtype)
        expected[columns] = torch.tensor(above, dtype=torch.float64).div(budget).to(dtype)
        torch.testing.assert_close(acts[row], expected, rtol=1e-6, atol=1e-9)
    scores = traceable_gate(z, 1 / budget, False)
    assert [row.nonzero().flatten().tolist() for row in scores] == [exact_support(r, budget)[0] for r in z.tolist()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("probabilities", [False, True])
def test_values_are_those_of_the_ordinary_gate(dtype, probabilities):
    torch.manual_seed(0)
    for shape in ((5,), (1,), (2, 3, 77), (4, 9000)):
        z = torch.randn(shape).to(dtype)
        z[..., 1:2] = -torch.inf
        expected = gate(z, 1.7, probabilities)
        torch.testing.assert_close(traceable_gate(z, 1.7, probabilities), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("probabilities", [False, True])
def test_derivatives_of_both_modes_and_of_second_order(probabilities):
    torch.manual_seed(0)
    z = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    of = lambda z: traceable_gate(z, 1.3, probabilities)  # noqa: E731
    assert torch.autograd.gradcheck(of, z, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(of, z)
    weights = torch.randn_like(z)
    ordinary = torch.autograd.grad((gate(z, 1.3, probabilities) * weights).sum(), z)[0]
    torch.testing.assert_close(grad(lambda z: (gate(z, 1.3, probabilities) * weights).sum())(z.detach()), ordinary)


def test_only_traced_calls_are_traced():
    z = torch.randn(4, 9)
    seen = []

    def look(z):
        seen.append(is_traced(z))
        return sparsemax(z)

    for run in (lambda: look(z), lambda: look(z.requires_grad_()).sum().backward()):
        run()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), forward_ad.dual_level():
        look(z)
    with torch.inference_mode():
        look(torch.nn.Parameter(z))
    assert seen == [False] * 4
    seen.clear()
    vmap(look)(z)
    grad(lambda z: look(z).sum())(z)
    jvp(look, (z,), (z,))
    with forward_ad.dual_level():
        look(forward_ad.make_dual(z, z))
    look(z.to("meta"))
    assert seen == [True] * 5


@pytest.mark.parametrize("bad", [[torch.nan, 1.0, 0.0], [0.0, torch.inf, 1.0], [-torch.inf] * 3])
def test_scores_that_are_not_finite_show(bad):
    z = torch.tensor([[0.1, 0.2, 3.0], bad])
    for probabilities in (False, True):
        acts = vmap(lambda z, p=probabilities: gate(z, 1.0, p))(z)
        assert acts[0].isfinite().all() and not acts[1].isfinite().all()
