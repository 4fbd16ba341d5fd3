"""The sparse attention against autograd through its plain formulation."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_sparsemax.attention import rows, selection
from sae_lens_sparsemax.attention.cross_attention import attend, attend_on, watched, weigh
from sae_lens_sparsemax.attention.selection import select


@pytest.fixture(autouse=True)
def always_lists(monkeypatch):
    """Small examples have dense supports; let them take the sparse path all the same."""
    monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", 1.0)


def plain(query, keys, values, bias, gate_scale, probabilities):
    """Activations and context by sorting and dense products, all of it left to autograd."""
    z = query @ keys.T if bias is None else query @ keys.T + bias
    ranked = (gate_scale * z).sort(-1, descending=True).values
    rank = torch.arange(1, z.shape[1] + 1, dtype=z.dtype)
    count = (ranked + (1 - ranked.cumsum(-1)) / rank > 0).sum(-1, keepdim=True)
    tau = (ranked.cumsum(-1).gather(1, count - 1) - 1) / count
    p = torch.clamp(gate_scale * z - tau, min=0)
    acts = p if probabilities else torch.where(p > 0, z, 0)
    return acts, acts @ values


def dense(acts: torch.Tensor) -> torch.Tensor:
    return acts.to_dense() if acts.is_sparse else acts


def example(n=11, m=90, d=6, shared=True, with_bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    keys = leaf(m, d)
    return leaf(n, d), keys, keys if shared else leaf(m, d), leaf(m) if with_bias else None


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("density", [1.0, 0.0])
def test_outputs_and_gradients_equal_the_plain_formulation(probabilities, shared, with_bias, density, monkeypatch):
    monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", density)
    query, keys, values, bias = example(shared=shared, with_bias=with_bias)
    leaves = [t for t in (query, keys, None if shared else values, bias) if t is not None]
    acts_weight, context_weight = torch.randn(11, 90, dtype=torch.float64), torch.randn(11, 6, dtype=torch.float64)

    def gradients(acts, context):
        loss = (dense(acts) * acts_weight).sum() + (context * context_weight).pow(2).sum()
        return torch.autograd.grad(loss, leaves)

    ours = attend(query, keys, values, bias, gate_scale=1.3, probabilities=probabilities)
    acts, context = plain(query, keys, values, bias, 1.3, probabilities)
    assert ours.acts.is_sparse == (density == 1.0)
    torch.testing.assert_close(dense(ours.acts), acts, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.context, context, rtol=0, atol=1e-12)
    for mine, autograds in zip(gradients(ours.acts, ours.context), gradients(acts, context), strict=True):
        torch.testing.assert_close(mine, autograds, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shared", [True, False])
def test_gradients_of_several_calls_are_summed_in_every_backward_pass_anew(shared):
    query, keys, values, bias = example(shared=shared)
    leaves = [query, keys, bias] if shared else [query, keys, values, bias]
    once = watched(keys, values)
    first, acts = attend(query, *once, bias), attend(2 * query, *once, bias).acts
    row, col = acts.indices()
    scores, context = attend_on(3 * query, *once, bias, row, col)
    loss = (first.context * weigh(acts, once[1]) * context).sum() + scores.pow(2).sum() + once[0].sum()
    one, two = (plain(factor * query, keys, values, bias, 1.0, False) for factor in (1, 2))
    again = torch.where(two[0] != 0, 3 * query @ keys.T + bias, 0)
    expected = (one[1] * two[1] * (again @ values)).sum() + again.pow(2).sum() + keys.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.autograd.grad(loss, query, retain_graph=True)  # leaves sums of concepts that nobody asks for
    for mine, autograds in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(mine, autograds, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("probabilities", [False, True])
def test_gradients_equal_finite_differences(probabilities):
    query, keys, values, bias = example(n=4, m=12, d=3, shared=False)

    def context(*tensors):
        return attend(*tensors, gate_scale=0.8, probabilities=probabilities).context

    assert torch.autograd.gradcheck(context, (query, keys, values, bias))


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("alpha", [2.0, 2.5])
def test_dense_attention_has_second_derivatives(probabilities, alpha, monkeypatch):
    monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", 0.0)
    query, keys, values, _ = example(n=2, m=6, d=2, shared=False, with_bias=False)

    def context(*tensors):
        return attend(*tensors, gate_scale=0.8, probabilities=probabilities, alpha=alpha).context

    assert torch.autograd.gradgradcheck(context, (query, keys, values))


def attended(query, keys, values, bias, **gate):
    return attend(query, keys, values, bias, **gate).context


def weighed(query, keys, values, bias):
    return weigh(attend(query, keys, None, bias).acts, values)


def refined(query, keys, values, bias):
    return attend_on(query, keys, values, bias, torch.tensor([0, 1, 1]), torch.tensor([2, 0, 3]))[1]


@pytest.mark.parametrize("has_fast_products", [True, False])
@pytest.mark.parametrize(
    "call",
    [
        attended,
        partial(attended, probabilities=True),
        partial(attended, probabilities=True, alpha=3.0),
        lambda *tensors: attend(*tensors).acts.to_dense(),
        weighed,
        refined,
    ],
)
def test_second_derivatives_over_lists_are_refused(call, has_fast_products, monkeypatch):
    monkeypatch.setattr(rows, "HAS_FAST_PRODUCTS", has_fast_products and rows.HAS_FAST_PRODUCTS)
    tensors = example(n=4, m=12, d=3, shared=False)
    for loss in (call(*tensors).sum(), call(*tensors).pow(2).sum()):
        with pytest.raises(ValueError, match="must be of first order, with create_graph=False, got create_graph=True"):
            torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([0, 1, 2, 5, 17]),
    m=st.integers(1, 130),
    d=st.integers(1, 9),
    shared=st.booleans(),
    probabilities=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_the_plain_formulation(n, m, d, shared, probabilities, seed):
    query, keys, values, bias = example(n, m, d, shared, seed=seed)
    ours = attend(query, keys, values, bias, probabilities=probabilities)
    acts, context = plain(query, keys, values, bias, 1.0, probabilities)
    torch.testing.assert_close(dense(ours.acts), acts, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.context, context, rtol=0, atol=1e-10)
    mine = torch.autograd.grad(ours.context.sum(), keys, allow_unused=True)[0]
    autograds = torch.autograd.grad(context.sum(), keys)[0]
    torch.testing.assert_close(torch.zeros_like(keys) if mine is None else mine, autograds, rtol=1e-10, atol=1e-10)


def test_blocks_of_tokens_change_nothing(monkeypatch):
    query, keys, _, bias = example(n=50, m=200)
    whole = select(query.detach(), keys.detach(), bias.detach(), max_density=1.0)
    monkeypatch.setattr(selection, "MIN_BLOCK_ROWS", 7)
    monkeypatch.setitem(selection.BLOCK_SCORES, "cpu", 1)
    blocks = select(query.detach(), keys.detach(), bias.detach(), max_density=1.0)
    for one, many in zip(whole[0], blocks[0], strict=True):
        # A product of fewer rows may be rounded otherwise in the last place: some BLAS kernels depend on the shape.
        torch.testing.assert_close(one, many, rtol=1e-12, atol=1e-12)


def test_dense_supports_are_handed_to_matrix_products(monkeypatch):
    query, keys, values, _ = example(n=20, m=300, with_bias=False)
    monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", 0.06)
    assert not attend(1e-4 * query, keys, values).acts.is_sparse
    assert attend(10 * query, keys, values).acts.is_sparse


def test_probabilities_sum_to_one_and_the_threshold_is_theirs():
    query, keys, values, bias = example()
    ours = attend(query, keys, values, bias, gate_scale=2.0, probabilities=True)
    torch.testing.assert_close(dense(ours.acts).sum(-1), torch.ones(11, dtype=torch.float64))
    z = query @ keys.T + bias
    torch.testing.assert_close(dense(ours.acts), torch.clamp(2.0 * z - ours.tau()[:, None], min=0))
    assert torch.equal(ours.counts, (dense(ours.acts) > 0).sum(-1))


def test_dense_and_sparse_report_the_same_thresholds(monkeypatch):
    query, keys, values, bias = example()
    for probabilities in (True, False):
        sparse = attend(query, keys, values, bias, gate_scale=2.0, probabilities=probabilities)
        monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", 0.0)
        plain_products = attend(query, keys, values, bias, gate_scale=2.0, probabilities=probabilities)
        monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", 1.0)
        torch.testing.assert_close(sparse.tau(), plain_products.tau())
        assert torch.equal(sparse.counts, plain_products.counts)


def test_half_precision_and_autocast_select_what_float32_selects():
    query, keys, _, _ = (None if t is None else t.detach() for t in example(n=64, m=500, d=32))
    rounded_query, rounded_keys = query.bfloat16(), keys.bfloat16()
    exact = attend(rounded_query.float(), rounded_keys.float(), rounded_keys.float())
    half = attend(rounded_query, rounded_keys, rounded_keys)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = attend(rounded_query.float(), rounded_keys.float(), rounded_keys.float())
    for other in (half, cast):
        assert torch.equal(dense(other.acts), dense(exact.acts))


@pytest.mark.parametrize("name", ["query", "keys", "values", "bias"])
def test_whole_numbers_are_refused(name):
    given = {"query": torch.ones(2, 3), "keys": torch.ones(4, 3), "values": torch.ones(4, 3), "bias": torch.ones(4)}
    with pytest.raises(ValueError, match=f"{name} must be floating point, got torch.int64"):
        attend(**{**given, name: given[name].long()})


def test_bad_shapes_are_refused_with_what_was_given():
    with pytest.raises(ValueError, match=r"\(2, 3\), \(4, 5\) and \(4, 5\)"):
        attend(torch.zeros(2, 3), torch.zeros(4, 5), torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"expected bias \(4,\), got \(3,\)"):
        attend(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="gate_scale must be positive, got 0"):
        attend(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, 3), gate_scale=0.0)
