"""Screening by the kernels against the supports of the float32 scores, and against what torch lists."""

import math
from types import SimpleNamespace

import pytest
import torch

from sae_lens_sparsemax.attention import screening
from tests.attention.test_screening import ALPHAS, PAIRS, assert_same, rescored, unit
from tests.support.members import slow_but

pytest.importorskip("triton", reason="the kernels need Triton, which has no wheel for this platform")
from sae_lens_sparsemax.attention.kernels.rounding import round_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def by_kernels(monkeypatch):
    monkeypatch.setattr(screening, "MAX_CANDIDATES", 1.0)
    # All else is torch's.
    # The interpreter takes a while for a program a key; how these are rounded is a test of its own.
    used = SimpleNamespace(usable=lambda _: True, can_hold_rows=lambda _: False)
    monkeypatch.setattr(screening, "kernels", used)
    build = screening.Screen.__init__

    def build_for_kernels(self, *args):
        build(self, *args)
        self._rows_come_first = True

    monkeypatch.setattr(screening.Screen, "__init__", build_for_kernels)


OFTEN = ("ties", "huge norms", "worst rounding")


@pytest.mark.parametrize("name", slow_but(OFTEN, PAIRS))
def test_supports_are_those_of_the_float32_scores(name, by_kernels):
    torch.manual_seed(0)
    for alpha, m in zip(ALPHAS, (300, 77, 1), strict=True):
        query, keys = (tensor.to(DEVICE) for tensor in PAIRS[name](3, m, 24))
        spread = float(rescored(query, keys, None).std(correction=0)) or 1.0
        budget = 5.0 if math.isinf(alpha) else min(max(spread, 1e-30), 1e30) ** (1 / (alpha - 1))
        assert_same(query, keys, None, budget, alpha)
        assert_same(query, keys, spread * torch.randn(m, device=DEVICE), budget, alpha)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("width", [1, 24, 700])
def test_rows_are_rounded_and_what_that_costs_is_known(name, width):
    torch.manual_seed(0)
    rows = PAIRS[name](3, 5, width)[1].to(DEVICE)
    rounded = torch.empty_like(rows, dtype=torch.bfloat16)
    norm, lost = rows.new_empty(2, len(rows))
    round_rows(rows, rounded, norm, lost)
    off = rows.double() - rounded.double()
    # A GPU rounds to the nearest number, Triton's interpreter towards zero; the bound counts with what was lost.
    assert bool((off.abs() <= 2.0**-7 * rows.double().abs() + 2.0**-126).all())
    torch.testing.assert_close(norm.double(), rows.double().norm(dim=1), rtol=1e-6, atol=2.0**-63 * width**0.5)
    torch.testing.assert_close(lost.double(), off.norm(dim=1), rtol=1e-6, atol=2.0**-63 * width**0.5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_candidates_are_those_that_torch_lists(alpha, by_kernels, monkeypatch):
    torch.manual_seed(0)
    query, keys = unit(4, 32), unit(1000, 32)
    budget = 5.0 if math.isinf(alpha) else 1.0
    listed = []
    for with_kernels in (True, False):
        used = SimpleNamespace(usable=lambda _, usable=with_kernels: usable, can_hold_rows=lambda _: False)
        monkeypatch.setattr(screening, "kernels", used)
        screen = screening.Screen(keys.to(DEVICE), None, 4)
        screen.scores(query.to(DEVICE))
        crow, col = (each.cpu() for each in screen.candidates(query.to(DEVICE), budget, alpha))
        assert int(crow[-1]) < 1000
        listed.append({(row, int(c)) for row in range(4) for c in col[crow[row] : crow[row + 1]]})
    # Bounds of τ differ by a little from one way of finding them to the other.
    assert len(listed[0] ^ listed[1]) <= 0.2 * len(listed[1])


def test_too_many_candidates_are_refused_before_they_are_listed(by_kernels, monkeypatch):
    screen = screening.Screen(torch.ones(300, 8, device=DEVICE), None, 4)
    query = torch.ones(4, 8, device=DEVICE)
    assert screen.select(query, 1.0, 3.0) is not None
    monkeypatch.setattr(screening, "MAX_CANDIDATES", 0.5)
    assert screen.select(query, 1.0, 3.0) is None
