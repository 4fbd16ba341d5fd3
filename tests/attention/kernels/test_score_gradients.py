"""Gradients on the support against their formulas, written densely."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which has no wheel for this platform")
from sae_lens_sparsemax.attention.kernels.score_gradients import score_gradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def example(counts: list[int], width: int, dtype=torch.float64, shared=True):
    torch.manual_seed(0)
    crow = torch.tensor([0, *counts], device=DEVICE).cumsum(0)
    col = torch.cat([torch.randperm(40)[:n].sort().values for n in counts]).to(DEVICE)
    keys, values = torch.randn(2, 40, width, dtype=dtype, device=DEVICE)
    grad_acts = torch.randn(sum(counts), dtype=dtype, device=DEVICE)
    grad_context = torch.randn(len(counts), width, dtype=dtype, device=DEVICE)
    return crow, col, grad_acts, grad_context, keys, keys if shared else values


def expected(crow, col, grad_acts, grad_context, keys, values, gate_scale, probabilities):
    d_scores, d_query = torch.empty_like(grad_acts), torch.zeros_like(grad_context)
    for n in range(len(crow) - 1):
        here = slice(int(crow[n]), int(crow[n + 1]))
        grad = grad_acts[here] + values[col[here]] @ grad_context[n]
        d_scores[here] = gate_scale * (grad - grad.mean()) if probabilities else grad
        d_query[n] = d_scores[here] @ keys[col[here]]
    return d_scores, d_query


@pytest.mark.parametrize("probabilities", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("width", [1, 48, 700])
def test_gradients_equal_their_formulas(probabilities: bool, shared: bool, width: int):
    given = example([3, 1, 0, 40], width, shared=shared)
    mine, formula = (f(*given, 1.7, probabilities) for f in (score_gradients, expected))
    for one, other in zip(mine, formula, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_a_large_common_part_of_the_gradients_cancels_without_a_trace():
    crow, col, grad_acts, grad_context, keys, values = example([30, 25], 64, torch.float32)
    given = crow, col, grad_acts + 1e4, grad_context, keys, values
    exact = expected(crow, col, *(t.double() for t in given[2:]), 1.0, True)
    # Gradients near 1e4 carry a rounding of 1e-3 each; the mean's share of 1e4 · Σ K_i must not add to it.
    torch.testing.assert_close(score_gradients(*given, 1.0, True)[1].double(), exact[1], rtol=0, atol=2e-2)


def test_no_tokens_have_no_gradients():
    empty = torch.zeros(0, device=DEVICE)
    keys = torch.zeros(5, 3, device=DEVICE)
    crow = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    d_scores, d_query = score_gradients(
        crow, empty.long(), empty, torch.zeros(0, 3, device=DEVICE), keys, keys, 1.0, True
    )
    assert d_scores.shape == (0,)
    assert d_query.shape == (0, 3)
