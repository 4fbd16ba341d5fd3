"""The loss in the precision of the SAE, and no lower than float32."""

import pytest
import torch

from tests.support.small_sae import inputs, small_sae, step_input


@pytest.mark.parametrize("settings", [{}, {"gate": "relu"}, {"activations": "probabilities"}], ids=str)
@pytest.mark.parametrize("weighting", ["none", "inverse_norm"])
def test_the_loss_of_float64_is_computed_in_float64(weighting, settings):
    sae, x = small_sae(dtype="float64", loss_weighting=weighting, **settings), inputs(dtype=torch.float64)
    output = sae.training_forward_pass(step_input(x))
    per_token = (output.sae_out - x).pow(2).sum(-1)
    expected = (per_token if weighting == "none" else per_token / x.norm(dim=-1)).mean()
    assert output.loss.dtype == torch.float64
    torch.testing.assert_close(output.loss, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("weighting", ["none", "inverse_norm"])
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_of_lower_precision_is_computed_in_float32(dtype, given, weighting):
    sae = small_sae(dtype=dtype, loss_weighting=weighting)
    output = sae.training_forward_pass(step_input(inputs(dtype=given)))
    assert output.loss.dtype == torch.float32
