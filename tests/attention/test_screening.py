"""Screened supports against those of the float32 scores that become the activations, and the bound against float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_sparsemax.attention import screening
from sae_lens_sparsemax.attention.cross_attention import attend
from sae_lens_sparsemax.attention.rows import sampled_product
from sae_lens_sparsemax.attention.selection import select
from sae_lens_sparsemax.attention.support import UnrankableScores, select_support
from tests.attention.test_entmax import support_by_definition
from tests.attention.test_support import DISTRIBUTIONS

ALPHAS = [2.0, 3.0, math.inf]


def unit(n: int, d: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d), dim=1)


def signs(*shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape) * 2.0 - 1


def one_large(n: int, m: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A coordinate beside which the others are lost, the same for all scores of a row."""
    query, keys = torch.randn(n, d), torch.randn(m, d)
    query[:, 0], keys[:, 0] = 1e4, 1e4
    return query, keys


def cancelling(n: int, m: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of order 1 that are what is left of terms of order 1e6."""
    half = 1e3 * torch.randn(n, d), 1e3 * torch.randn(m, d)
    query, keys = torch.cat([half[0], half[0]], 1), torch.cat([half[1], -half[1]], 1)
    return query + 1e-3 * torch.randn_like(query), keys + 1e-3 * torch.randn_like(keys)


def worst_rounding(n: int, m: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearly a half of the last place lost from every component, always towards zero."""
    query, keys = torch.full((n, d), 1 + 2**-8 - 2**-20), torch.full((m, d), 1 + 2**-8 - 2**-20)
    keys[::3] *= -1
    return query, keys * 2.0 ** torch.randint(-1, 2, (m, 1))


PAIRS = {
    "gaussian": lambda n, m, d: (torch.randn(n, d), torch.randn(m, d)),
    "unit": lambda n, m, d: (unit(n, d), unit(m, d)),
    "heavy-tailed": lambda n, m, d: tuple(torch.distributions.StudentT(1.5).sample((k, d)) for k in (n, m)),
    "clusters": lambda n, m, d: (unit(n, d), unit(7, d)[torch.randint(7, (m,))] + 1e-3 * torch.randn(m, d)),
    "near-equal": lambda n, m, d: (unit(n, d), unit(1, d) + 1e-6 * torch.randn(m, d)),
    "ties": lambda n, m, d: (signs(n, d), signs(m, d)),
    "repeated keys": lambda n, m, d: (torch.randn(n, d), torch.randn(9, d)[torch.randint(9, (m,))]),
    "queries that are keys": lambda n, m, d: (lambda keys: (keys[:n].clone(), keys))(torch.randn(max(n, m), d)[:m]),
    "offset": lambda n, m, d: (torch.randn(n, d) + 30, torch.randn(m, d) + 30),
    "negative offset": lambda n, m, d: (torch.randn(n, d) + 30, torch.randn(m, d) - 30),
    "huge norms": lambda n, m, d: (1e15 * torch.randn(n, d), 1e15 * torch.randn(m, d)),
    "norms of any size": lambda n, m, d: (
        torch.randn(n, d) * 10.0 ** torch.randint(-6, 7, (n, 1)),
        torch.randn(m, d) * 10.0 ** torch.randint(-6, 7, (m, 1)),
    ),
    "few large keys": lambda n, m, d: (unit(n, d), unit(m, d) * (1 + 1e4 * (torch.rand(m, 1) > 0.99))),
    "one large coordinate": one_large,
    "cancellation": cancelling,
    "worst rounding": worst_rounding,
    "denormal components": lambda n, m, d: (
        torch.randn(n, d) * 10.0 ** torch.randint(-44, 3, (n, d)),
        torch.randn(m, d) * 10.0 ** torch.randint(-44, 3, (m, d)),
    ),
    "squares that vanish": lambda n, m, d: (3e-24 * torch.randn(n, d), 1e3 * torch.randn(m, d)),
    "zeros": lambda n, m, d: (torch.zeros(n, d), torch.randn(m, d)),
}


def rescored(query: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(n, m) the float32 scores that a screened call would make of each candidate."""
    n, m = len(query), len(keys)
    crow = torch.arange(0, n * m + 1, m, device=query.device)
    col = torch.arange(m, device=query.device).repeat(n)
    scores = sampled_product(crow, col, query, keys).view(n, m)
    return scores if bias is None else scores + bias


def screened(query, keys, bias, budget, alpha):
    screen = screening.Screen(keys, bias, 2 if len(query) < 10 else 40)
    found = screen.select(query, budget, alpha) if screen.is_safe else None
    return None if found is None or len(found[0].row_max) < len(query) else found[0]


def assert_same(query, keys, bias, budget, alpha) -> None:
    support = screened(query, keys, bias, budget, alpha)
    if support is None:
        assert max(query.abs().max(), keys.abs().max()) > 1e15
        return
    scores = rescored(query, keys, bias)
    expected = support_by_definition(scores, budget, alpha)
    assert torch.equal(torch.stack([support.row, support.col], 1), expected.nonzero())
    assert torch.equal(support.values, scores[expected])
    by_scores = select_support(scores, budget, alpha)
    assert torch.equal(support.row_max, by_scores.row_max)
    assert torch.equal(support.tau, by_scores.tau)


@pytest.fixture
def keep_all(monkeypatch):
    """However many candidates there are, no block is given up."""
    monkeypatch.setattr(screening, "MAX_CANDIDATES", 1.0)


@pytest.fixture
def screen_always(monkeypatch):
    monkeypatch.setitem(screening.SCREEN, "cpu", True)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_scores_of_the_distributions_of_the_unscreened_tests_have_the_same_supports(name, alpha, keep_all):
    torch.manual_seed(0)
    z = DISTRIBUTIONS[name]()[:4]
    # A unit vector of its own for each row makes the scores those of the matrix.
    for budget in (1.0, 0.01, 30.0):
        assert_same(torch.eye(len(z)), z.T.contiguous(), None, budget, alpha)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(sorted(PAIRS)),
    m=st.integers(1, 700),
    d=st.integers(1, 80),
    alpha=st.sampled_from([*ALPHAS, 2.5, 5.0]),
    exponent=st.sampled_from([0, 0, 0, -30, -15, -3, 3]),
    share=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
    bias=st.sampled_from([None, 0.01, 1.0, 100.0]),
    seed=st.integers(0, 2**31),
)
def test_supports_are_those_of_the_float32_scores(name, m, d, alpha, exponent, share, bias, seed):
    torch.manual_seed(seed)
    query, keys = PAIRS[name](3, m, d)
    keys = keys * 10.0**exponent
    spread = float(rescored(query, keys, None).std(correction=0)) or 1.0
    shift = None if bias is None else bias * spread * torch.randn(m)
    # A budget that means about as much whatever the size of the scores.
    budget = share * (30 if math.isinf(alpha) else min(max(spread, 1e-30), 1e30) ** (1 / (alpha - 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screening, "MAX_CANDIDATES", 1.0)
        assert_same(query, keys, shift, budget, alpha)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("width", [1, 64, 768])
def test_the_bound_holds(name, width, with_bias):
    torch.manual_seed(0)
    query, keys = PAIRS[name](8, 333, width)
    bias = torch.randn(333) * 10.0 ** torch.randint(-5, 6, (333,)) if with_bias else None
    screen = screening.Screen(keys, bias, 8)
    z = screen.scores(query).double()
    error = screen.error(query).double().repeat_interleave(screening.CHUNK, 1)[:, :333]
    exact = query.double() @ keys.double().T + (0 if bias is None else bias.double())
    for scores in (exact, rescored(query, keys, bias).double()):
        assert bool(((scores - z).abs() <= screen.share * z.abs() + error).all())


def test_the_bound_is_not_much_wider_than_the_worst_rounding():
    query, keys = worst_rounding(8, 320, 256)
    screen = screening.Screen(keys, None, 8)
    off = (query.double() @ keys.double().T - screen.scores(query).double()).abs()
    largest = off.view(8, -1, screening.CHUNK).amax(-1)
    assert float((largest / screen.error(query)).max()) > 0.8


def test_the_bound_holds_where_both_stored_numbers_lose_a_half_of_their_last_place():
    side, bias = torch.tensor([[1.0625]]), torch.tensor([2.0**-8])
    screen = screening.Screen(side, bias, 1)
    z = float(screen.scores(side))
    off = 1.0625**2 + 2.0**-8 - z
    assert off == 2.0**-7
    assert 0.8 < off / (screen.share * z + float(screen.error(side))) <= 1


@pytest.mark.parametrize("alpha", ALPHAS)
def test_about_twice_the_support_is_scored_exactly(alpha, monkeypatch):
    torch.manual_seed(0)
    query, keys = unit(64, 256), unit(8192, 256)
    rescoring = []
    settle = screening.settle
    monkeypatch.setattr(
        screening, "settle", lambda values, *rest: rescoring.append(len(values)) or settle(values, *rest)
    )
    budget = {2.0: 0.6, 3.0: 7.0, math.inf: 50.0}[alpha]
    support = screened(query, keys, None, budget, alpha)
    assert 15 < len(support.col) / 64 < 80
    assert rescoring[0] < 2.5 * len(support.col)


def test_a_call_is_screened_block_by_block_and_its_gradients_are_the_same(screen_always, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(screening, "BLOCK_ROWS", 7)
    given = [unit(20, 32), unit(3000, 32), 0.1 * torch.randn(3000)]
    found = []
    for screen in (True, False):
        monkeypatch.setitem(screening.SCREEN, "cpu", screen)
        query, keys, bias = (tensor.clone().requires_grad_() for tensor in given)
        attention = attend(query, keys, keys, bias, gate_scale=3.0)
        attention.context.square().sum().backward()
        found.append([attention.acts.to_dense(), attention.context, query.grad, keys.grad, bias.grad])
        torch.testing.assert_close(attention.score_std, torch.tensor(0.2), rtol=0.2, atol=0)
    assert torch.equal(found[0][0] != 0, found[1][0] != 0)
    for screened_tensor, tensor in zip(*found, strict=True):
        torch.testing.assert_close(screened_tensor, tensor)


UNFIT = {
    "ties everywhere": lambda: (torch.zeros(40, 8), torch.randn(3000, 8)),
    "dense": lambda: (1e-3 * torch.randn(40, 8), torch.randn(3000, 8)),
    "denormal": lambda: (1e-40 * torch.randn(40, 8), torch.randn(3000, 8)),
    "tiny": lambda: (1e-25 * torch.randn(40, 8), 1e-12 * torch.randn(3000, 8)),
    "huge queries": lambda: (1e30 * torch.randn(40, 8), torch.randn(3000, 8)),
    "huge keys": lambda: (1e-10 * torch.randn(40, 8), 1e25 * torch.randn(3000, 8)),
    "one block of two": lambda: (torch.cat([torch.randn(20, 8), torch.zeros(20, 8)]), 3 * torch.randn(3000, 8)),
    "float64": lambda: (torch.randn(40, 8, dtype=torch.float64), torch.randn(3000, 8, dtype=torch.float64)),
}


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_screened_is_selected_as_ever(name, alpha, screen_always, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(screening, "BLOCK_ROWS", 20)
    query, keys = UNFIT[name]()
    support, _ = select(query, keys, alpha=alpha, gate_scale=1.0, max_density=1.0)
    monkeypatch.setitem(screening.SCREEN, "cpu", False)
    expected, _ = select(query, keys, alpha=alpha, gate_scale=1.0, max_density=1.0)
    assert torch.equal(support.crow, expected.crow)
    assert torch.equal(support.col, expected.col)
    torch.testing.assert_close(support.values, expected.values)


@pytest.mark.parametrize("where", ["query", "keys", "bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_refused(where, value, screen_always):
    given = {"query": torch.randn(5, 8), "keys": torch.randn(300, 8), "bias": torch.zeros(300)}
    given[where].view(-1)[-1] = value
    with pytest.raises(UnrankableScores, match=r"scores must be finite.*got NaN or \+inf in \d of 5 rows"):
        select(given["query"], given["keys"], given["bias"])


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (1, 33)])
def test_any_shape_has_supports(shape, screen_always, keep_all):
    query, keys = torch.randn(shape[0], 4), torch.randn(shape[1], 4)
    support, _ = select(query, keys, max_density=1.0)
    assert len(support.crow) == shape[0] + 1
    assert shape[0] == 0 or int(support.counts.min()) >= 1


@pytest.fixture
def precision_after():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.usefixtures("precision_after")
def test_whether_to_screen_is_a_matter_of_processor_settings_and_shapes(monkeypatch):
    query, keys = torch.empty(screening.MIN_TOKENS, 2), torch.zeros(screening.MIN_CONCEPTS, 2)
    monkeypatch.setattr(screening, "has_fast_bfloat16", lambda: False)
    assert screening.screen_for(query, keys, None, 512) is None
    monkeypatch.setattr(screening, "has_fast_bfloat16", lambda: True)
    assert screening.screen_for(query, keys, None, 512) is not None
    assert screening.screen_for(query[1:], keys, None, 512) is None
    assert screening.screen_for(query, keys[1:], None, 512) is None
    with torch.backends.mkldnn.flags(enabled=False):
        assert screening.screen_for(query, keys, None, 512) is None
    torch.set_float32_matmul_precision("medium")
    assert screening.screen_for(query, keys, None, 512) is None


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.usefixtures("precision_after")
def test_a_gpu_screens_from_ampere_on_unless_float32_products_may_be_rounded(monkeypatch):
    gpu, many = torch.device("cuda", 0), screening.MIN_SCORES_ON_GPU
    for capability, precision, screens in [
        ((8, 0), "highest", True),
        ((7, 5), "highest", False),
        ((9, 0), "high", False),
    ]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        torch.set_float32_matmul_precision(precision)
        assert screening.is_worthwhile(1024, many // 1024, gpu) is screens
        assert screening.is_worthwhile(64, many // 64, gpu) is screens
        assert not screening.is_worthwhile(1024, many // 1024 - 1, gpu)


@pytest.mark.parametrize(("limit", "allowed"), [(None, True), ("AVX512_CORE_AMX", True), ("avx512_core_bf16", False)])
def test_a_processor_has_fast_bfloat16_where_the_matrix_unit_may_be_used(limit, allowed, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    for present in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": present}, raising=False)  # noqa: B023
        assert screening.has_fast_bfloat16.__wrapped__() == (allowed and present)
        with monkeypatch.context() as older:
            older.delattr(torch.cpu, "get_capabilities")
            older.setattr(torch.cpu, "_is_amx_tile_supported", lambda: present, raising=False)  # noqa: B023
            assert screening.has_fast_bfloat16.__wrapped__() == (allowed and present)
            older.delattr(torch.cpu, "_is_amx_tile_supported")
            assert not screening.has_fast_bfloat16.__wrapped__()
