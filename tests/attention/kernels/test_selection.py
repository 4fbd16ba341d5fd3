"""The selection kernels against the torch path, bit for bit, and against a float64 sort."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_sparsemax.attention.support import Support, check_row_maxima, select_support, settle
from tests.attention.test_entmax import ALPHAS, BUDGETS, support_by_definition
from tests.attention.test_support import BAD_ROWS, DISTRIBUTIONS, sorted_support
from tests.support.members import slow_but

pytest.importorskip("triton", reason="the kernels need Triton, which has no wheel for this platform")
from sae_lens_sparsemax.attention.kernels import selection, settling

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def selected(z: torch.Tensor, budget: float, alpha: float = 2.0) -> Support:
    return Support(*(t.cpu() for t in selection.select(z.to(DEVICE), budget, alpha)), budget, alpha)


def check(z: torch.Tensor, budget: float, alpha: float = 2.0):
    found = selected(z, budget, alpha)
    crow, col, values = found[:3]
    if alpha == 2:
        mask, sorted_tau = sorted_support(z, budget)
        torch.testing.assert_close(found.tau, sorted_tau, rtol=1e-12, atol=1e-8)
    else:
        mask = support_by_definition(z, budget, alpha)
    assert torch.equal(crow.diff(), mask.sum(-1))
    assert torch.equal(col, mask.nonzero()[:, 1])
    assert torch.equal(values, z[mask])
    for mine, torchs in zip(found[:4], select_support(z, budget, alpha)[:4], strict=True):
        assert mine.dtype == torchs.dtype
        assert torch.equal(mine, torchs)


# By default one of each kind: these differ from others in their numbers alone.
ALIKE = (
    "narrow gaussian",
    "dense gaussian",
    "clustered",
    "zeros",
    "large negative offset",
    "all but one tied",
    "one row",
)


@pytest.mark.parametrize("name", slow_but(DISTRIBUTIONS.keys() - ALIKE, DISTRIBUTIONS))
def test_support_and_threshold_equal_the_torch_path_and_a_sort(name: str):
    torch.manual_seed(0)
    z = DISTRIBUTIONS[name]()[:2, :5000]
    for budget in (1.0, 0.01, 30.0):
        check(z, budget)


OFTEN = {
    "narrow gaussian": [3.0],
    "heavy-tailed": [3.0, math.inf],
    "one-hot": [math.inf],
    "constant": [3.0],
    "ties": [3.0, math.inf],
    "large offset": [3.0],
}


# The other gates are the same kernel with another exponent; `test_any_shape_equals_the_torch_path` draws them too.
@pytest.mark.parametrize(
    ("name", "alpha"),
    slow_but([(name, alpha) for name in OFTEN for alpha in OFTEN[name]], itertools.product(OFTEN, ALPHAS[1:])),
)
def test_other_gates_equal_the_torch_path_and_the_definition(name: str, alpha: float):
    torch.manual_seed(0)
    z = DISTRIBUTIONS[name]()[:2, :3000]
    for budget in BUDGETS:
        check(z, budget, alpha)


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 3),
    m=st.integers(1, 300),
    scale=st.sampled_from([1e-6, 0.3, 100.0]),
    offset=st.sampled_from([0.0, -5.0, 1e3]),
    budget=st.sampled_from([0.1, 1.0, 7.0]),
    alpha=st.sampled_from(ALPHAS),
    double=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape_equals_the_torch_path(n, m, scale, offset, budget, alpha, double, seed):
    z = scale * torch.randn(n, m, generator=torch.Generator().manual_seed(seed)) + offset
    check(z.double() if double else z, budget, alpha)


@settings(max_examples=12, deadline=None)
@given(
    m=st.integers(1, 700),
    share=st.sampled_from([0.02, 0.5, 1.0]),
    scale=st.sampled_from([1e-6, 0.3, 100.0]),
    budget=st.sampled_from([0.1, 1.0, 7.0]),
    alpha=st.sampled_from(ALPHAS),
    double=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_candidates_in_lists_are_settled_as_in_the_matrix(m, share, scale, budget, alpha, double, seed):
    torch.manual_seed(seed)
    z = scale * torch.randn(3, m, dtype=torch.float64 if double else torch.float32)
    listed = support_by_definition(z, budget, alpha) | (torch.rand(3, m) < share)
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), listed.sum(-1).cumsum(0)])
    given = z[listed], crow, listed.nonzero()[:, 1], z.amax(-1).double()
    found = [each.cpu() for each in settling.settle(*(each.to(DEVICE) for each in given), budget, alpha)]
    for mine, torchs in zip(found, settle(*given, budget, alpha)[:3], strict=True):
        assert mine.dtype == torchs.dtype
        assert torch.equal(mine, torchs)


def test_wide_rows_take_longer_chunks(monkeypatch):
    monkeypatch.setattr(selection, "MAX_CHUNKS", 3)
    torch.manual_seed(0)
    check(torch.randn(3, 1001), 1.0)
    check(0.01 * torch.randn(3, 6100), 1.0)


def test_rows_that_are_views_are_read_as_they_are():
    z = torch.randn(5, 300)
    mine = selection.select(z.to(DEVICE)[1:4, 7:], 1.0)
    for one, other in zip(mine, selection.select(z[1:4, 7:].clone().to(DEVICE), 1.0), strict=True):
        assert torch.equal(one, other)


def test_minus_infinity_is_never_selected():
    z = torch.tensor([[0.3, -torch.inf, 0.2], [-torch.inf, -torch.inf, -5.0]], device=DEVICE)
    found = Support(*selection.select(z, 1.0), 1.0, 2.0)
    assert found.crow.tolist() == [0, 2, 3]
    assert found.col.tolist() == [0, 2, 2]
    torch.testing.assert_close(found.tau.cpu(), torch.tensor([-0.25, -6.0], dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("alpha", [2.0, 3.0, math.inf])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_scores_that_are_not_finite_are_refused(name, alpha):
    row, message = BAD_ROWS[name]
    crow, col, values, row_max = selection.select(torch.tensor([[0.3, 0.2, 0.1], row], device=DEVICE), 1.0, alpha)
    assert int(crow[-1]) == len(col) == len(values) <= 6
    assert not len(col) or int(col.max()) < 3
    with pytest.raises(ValueError, match=f"scores must be finite, or -inf beside finite ones, got {message}"):
        check_row_maxima(row_max)


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered:RuntimeWarning")
@pytest.mark.parametrize("alpha", [2.0, 3.0, math.inf])
def test_rows_without_a_candidate_have_no_support(alpha):
    crow = torch.tensor([0, 0, 2, 2], device=DEVICE)
    given = torch.tensor([0.3, 0.2], device=DEVICE), crow, torch.tensor([4, 7], device=DEVICE)
    row_max = torch.tensor([-torch.inf, 0.3, -torch.inf], dtype=torch.float64, device=DEVICE)
    found_crow, col, _ = settling.settle(*given, row_max, 2.0 if math.isinf(alpha) else 1.0, alpha)
    assert found_crow.tolist() == [0, 0, 2, 2]
    assert col.tolist() == [4, 7]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("huge", [2.0**54, -3e38, 3e38])
def test_huge_scores_have_a_support_that_spends_the_budget(huge):
    z = torch.full((2, 70), huge)
    z[1, 7:] = -3.4e38
    found = selected(z, 1.0)
    assert found.counts.tolist() == [70, 7]
    torch.testing.assert_close(found.above_tau, (1 / found.counts.double())[found.row])


def test_no_rows_are_no_support():
    crow, *rest = selection.select(torch.zeros(0, 40, device=DEVICE), 1.0)
    assert crow.tolist() == [0]
    assert {part.shape for part in rest} == {(0,)}
