"""The support against a float64 sort."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_sparsemax.attention import support as support_module
from sae_lens_sparsemax.attention.cross_attention import attend
from sae_lens_sparsemax.attention.gate import gate, sparsemax
from sae_lens_sparsemax.attention.support import select_support, settle, tightened


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
    "gaussian": lambda: torch.randn(16, 12288),
    "narrow gaussian": lambda: 0.05 * torch.randn(16, 12288),
    "dense gaussian": lambda: 0.002 * torch.randn(16, 3000),
    "heavy-tailed": lambda: torch.distributions.StudentT(1.5).sample((16, 5001)),
    "clustered": lambda: clustered(16, 3333),
    "one-hot": lambda: 5 * torch.eye(200),
    "constant": lambda: torch.full((3, 777), 3.0),
    "zeros": lambda: torch.zeros(3, 64),
    "nearly dense": lambda: 1e-6 * torch.randn(8, 4097),
    "large offset": lambda: 0.1 * torch.randn(16, 9000) + 1e4,
    "large negative offset": lambda: 0.1 * torch.randn(16, 9000) - 1e4,
    "ties": lambda: torch.randint(-3, 3, (16, 1000)).float() / 4,
    "all but one tied": lambda: torch.cat([torch.ones(5, 1), torch.zeros(5, 999)], 1),
    "sorted": lambda: torch.linspace(0, 1, 8200).repeat(4, 1),
    "one column": lambda: torch.randn(9, 1),
    "one row": lambda: torch.randn(1, 8193),
}


@pytest.mark.parametrize("budget", [1.0, 0.01, 30.0])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("max_active", [0.0, 1.0], ids=["whole rows", "two levels"])
def test_support_and_threshold_equal_a_float64_sort(name: str, budget: float, max_active: float, monkeypatch):
    monkeypatch.setattr(support_module, "MAX_ACTIVE_CHUNKS", max_active)
    torch.manual_seed(0)
    z = DISTRIBUTIONS[name]()
    mask, tau = sorted_support(z, budget)
    assert torch.equal(found_support(z, budget), mask)
    torch.testing.assert_close(select_support(z, budget).tau, tau, rtol=1e-12, atol=1e-8)


@settings(max_examples=100, deadline=None)
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


def exact_support(row: list[float], budget: float) -> tuple[list[int], list[float]]:
    """Columns and their z − τ by sorting in fractions."""
    ranked = sorted((Fraction(value) for value in row), reverse=True)
    total, tau = Fraction(0), Fraction(0)
    for rank, value in enumerate(ranked, start=1):
        total += value
        if value > (total - Fraction(budget)) / rank:
            tau = (total - Fraction(budget)) / rank
    above = [(column, Fraction(value) - tau) for column, value in enumerate(row)]
    return [column for column, excess in above if excess > 0], [float(excess) for _, excess in above if excess > 0]


@pytest.mark.parametrize("widest", [1, 40, 4000])
@pytest.mark.parametrize("alpha", [2.0, 2.5, 3.0, 20.0, math.inf])
def test_candidates_that_a_bound_rules_out_were_in_no_support(alpha, widest):
    """Rows of one candidate beside wider ones, and of which one has most of all."""
    torch.manual_seed(0)
    counts = torch.randint(1, 41, (60,)).index_put_((torch.tensor([7]),), torch.tensor(widest))
    crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    col = torch.cat([torch.arange(n) for n in counts.tolist()])
    values = (4 * torch.randn(len(col))).round() / 4
    row_max = torch.segment_reduce(values, "max", offsets=crow).double()
    budget = 3.0 if math.isinf(alpha) else 2.0
    expected = settle(values, crow, col, row_max, budget, alpha)
    fewer, *where = tightened(values, crow, col, row_max, budget, alpha)

    assert len(fewer) < 0.8 * len(values)
    found = settle(fewer, *where, row_max, budget, alpha)
    for name in ("crow", "col", "values"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    exponent=st.integers(-30, 300),
    budget=st.sampled_from([1e-6, 0.7, 1.00005, 1e6]),
    max_active=st.sampled_from([0.0, 1.0]),
    steps=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_scores_of_any_finite_size_have_a_support_that_spends_the_budget(
    dtype, exponent, budget, max_active, steps, seed
):
    generator = torch.Generator().manual_seed(seed)
    exponent = min(exponent, 38) if dtype == torch.float32 else exponent
    if steps:  # neighbours at the limit of the dtype, and ties
        z = 10.0**exponent * (1 + torch.finfo(dtype).eps * torch.randint(-4, 2, (3, 70), generator=generator))
    else:
        z = 10.0**exponent * torch.randn(3, 70, generator=generator, dtype=torch.float64)
    z = z.to(dtype).clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)
    z[0, 3] = z[0, 5] = z[0].max()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support_module, "MAX_ACTIVE_CHUNKS", max_active)
        support = select_support(z, budget)
    for row, (columns, above) in enumerate(exact_support(values, budget) for values in z.tolist()):
        own = support.row == row
        assert support.col[own].tolist() == columns
        torch.testing.assert_close(support.above_tau[own].tolist(), above, rtol=1e-9, atol=1e-9 * budget)


@pytest.mark.parametrize("max_active", [0.0, 1.0], ids=["whole rows", "two levels"])
def test_probabilities_of_huge_scores_sum_to_one_and_ties_share_them(max_active, monkeypatch):
    monkeypatch.setattr(support_module, "MAX_ACTIVE_CHUNKS", max_active)
    for huge, dtype in ((3e38, torch.float32), (-3e38, torch.float32), (1e308, torch.float64)):
        z = torch.full((2, 40), huge, dtype=dtype)
        z[1, 7] *= 0.5 if huge < 0 else 1
        z[1, 8:] *= 1 if huge < 0 else 0.5
        p = sparsemax(z)
        assert torch.equal(p[0], torch.full((40,), 1 / 40, dtype=dtype))
        assert p[1].count_nonzero() == (1 if huge < 0 else 8)
        torch.testing.assert_close(p.sum(-1), torch.ones(2, dtype=dtype))


BAD_ROWS = {
    "NaN": ([torch.nan, 1.0, 0.0], "NaN or [+]inf in 1 of 2 rows"),
    "+inf": ([0.0, torch.inf, 1.0], "NaN or [+]inf in 1 of 2 rows"),
    "both": ([torch.inf, torch.nan, -torch.inf], "NaN or [+]inf in 1 of 2 rows"),
    "padding alone": ([-torch.inf] * 3, "nothing but -inf in 1 of 2 rows"),
}


@pytest.mark.parametrize("function", [select_support, gate, sparsemax])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_scores_that_are_not_finite_are_refused(name, dtype, function):
    row, message = BAD_ROWS[name]
    for width in (3, 9000):
        z = torch.full((2, width), 0.1, dtype=dtype)
        z[1] = -torch.inf
        z[1, -3:] = torch.tensor(row)
        with pytest.raises(ValueError, match=f"scores must be finite, or -inf beside finite ones, got {message}"):
            function(z)


@pytest.mark.parametrize("where", ["query", "keys", "bias"])
def test_attention_to_what_is_not_finite_is_refused(where):
    given = {"query": torch.randn(5, 8), "keys": torch.randn(300, 8), "bias": torch.zeros(300)}
    given[where].view(-1)[-1] = torch.nan
    with pytest.raises(ValueError, match=r"got NaN or \+inf in \d of 5 rows"):
        attend(given["query"], given["keys"], given["keys"], given["bias"])


def test_bad_input_is_refused_with_what_was_given():
    with pytest.raises(ValueError, match=r"shape \(N, M\).*\(3, 0\)"):
        select_support(torch.zeros(3, 0))
    with pytest.raises(ValueError, match=r"budget must be positive, got 0"):
        select_support(torch.zeros(3, 2), 0.0)
