"""Sums over lists of every length against `embedding_bag`."""

import pytest
import torch
from torch.nn.functional import embedding_bag

pytest.importorskip("triton", reason="the kernels need Triton, which has no wheel for this platform")
from sae_lens_sparsemax.attention.kernels import weighted_rows as module
from sae_lens_sparsemax.attention.kernels.weighted_rows import weighted_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEGMENT = module.SEGMENT


def lists(lengths: list[int], n_rows: int = 30):
    offsets = torch.tensor([0, *lengths], device=DEVICE).cumsum(0)
    n = sum(lengths)
    return offsets, torch.randint(0, n_rows, (n,), device=DEVICE), torch.randn(n, dtype=torch.float64, device=DEVICE)


def expected(offsets, index, weights, table):
    return embedding_bag(index, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


@pytest.mark.parametrize(
    "lengths",
    [
        [0, 5, 6 * SEGMENT + 16, SEGMENT, SEGMENT + 1, 0, 1, 2 * SEGMENT, 2 * SEGMENT + 1, 0],
        [SEGMENT - 1, SEGMENT - 1, SEGMENT - 1],
        [3 * SEGMENT],
        [2, 1],
        [0, 0],
    ],
    ids=["mixed", "short of a segment each", "one hot list", "few", "empty"],
)
@pytest.mark.parametrize("width", [1, pytest.param(20, marks=pytest.mark.slow), 300])
def test_lists_of_any_length_are_summed(lengths: list[int], width: int):
    offsets, index, weights = lists(lengths)
    table = torch.randn(30, width, dtype=torch.float64, device=DEVICE)
    for uneven in (True, False):
        summed = weighted_rows(offsets, index, weights, table, uneven)
        torch.testing.assert_close(summed, expected(offsets, index, weights, table))


def test_no_lists_are_no_sums():
    offsets, index, weights = lists([])
    assert weighted_rows(offsets, index, weights, torch.zeros(4, 7, device=DEVICE).double()).shape == (0, 7)


def test_float32_sums_stay_float32():
    offsets, index, weights = lists([4, 100])
    table = torch.randn(30, 40, device=DEVICE)
    out = weighted_rows(offsets, index, weights.float(), table)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected(offsets, index, weights.float(), table), rtol=1e-4, atol=1e-4)
