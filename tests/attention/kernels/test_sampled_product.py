"""Inner products at the entries of lists against whole products."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which has no wheel for this platform")
from sae_lens_sparsemax.attention.kernels.sampled_product import sampled_product

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 48, 700])
def test_products_are_those_of_the_whole_product(width: int, dtype: torch.dtype):
    torch.manual_seed(0)
    counts = [3, 1, 0, 40]
    crow = torch.tensor([0, *counts], device=DEVICE).cumsum(0)
    col = torch.cat([torch.randperm(40)[:n].sort().values for n in counts]).to(DEVICE)
    left, right = torch.randn(4, width, dtype=dtype, device=DEVICE), torch.randn(40, width, dtype=dtype, device=DEVICE)
    row = torch.repeat_interleave(crow.diff())
    found = sampled_product(crow, col, left, right.T.contiguous().T)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        found.double(), (left.double() @ right.double().T)[row, col], rtol=tolerance, atol=tolerance * width**0.5
    )


def test_no_entries_have_no_products():
    crow, col = torch.zeros(3, dtype=torch.int64, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert sampled_product(crow, col, torch.zeros(2, 5, device=DEVICE), torch.zeros(7, 5, device=DEVICE)).shape == (0,)
