"""A linear map behind a norm, read before it."""

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from sae_lens_sparsemax.models.final_norm import before_norm

_NORMS = {
    "layer": nn.LayerNorm,
    "layer without weights": lambda d: nn.LayerNorm(d, elementwise_affine=False),
    "RMS": nn.RMSNorm,
    "RMS of one and its weight": Gemma2RMSNorm,
    "none": lambda d: nn.Identity(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_model", [9, 12])
@pytest.mark.parametrize("name", _NORMS)
@torch.no_grad()
def test_a_direction_is_mapped_as_the_norm_and_the_matrix_map_it_up_to_its_size(name, d_model, dtype):
    generator = torch.Generator().manual_seed(0)
    norm = _NORMS[name](d_model)
    for parameter in norm.parameters():
        parameter.copy_(torch.randn(d_model, generator=generator))
    norm = norm.to(dtype)
    matrix, rows = torch.randn(d_model, 30, generator=generator), torch.randn(5, d_model, generator=generator) + 1
    bias = norm.float()(torch.zeros(d_model))
    expected = (norm(rows) - bias) @ matrix
    found = rows @ before_norm(norm.to(dtype), matrix)
    cosine = nn.functional.cosine_similarity(found, expected, dim=-1)
    assert (cosine > (0.9999 if dtype == torch.float32 else 0.99)).all()
