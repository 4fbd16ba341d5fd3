"""Weights, activations and losses that are not finite, or nearly so: never a result without a word."""

import re

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from safetensors.torch import load_file, save_file

from sae_lens_sparsemax import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.sae.queries import split_norm
from tests.sae.test_inference import new_sae
from tests.support.small_sae import inputs, small_sae, step_input


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-300, -42, -30, -12, 0, 12, 20, 38, 300])
def test_queries_of_any_finite_size_are_unit_vectors_and_their_factor_the_norm(dtype, exponent):
    if dtype == torch.float32 and not -45 < exponent < 39:
        pytest.skip("no float32")
    torch.manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(5, 7, dtype=torch.float64), dim=-1)
    x = (direction * 10.0**exponent).to(dtype)
    query, factor = split_norm(x, True)
    digits = 1e-6 if exponent > -40 else 1e-2  # subnormal numbers have few digits
    torch.testing.assert_close(query.double(), direction, rtol=digits, atol=digits)
    torch.testing.assert_close(factor.double(), torch.full_like(factor, 10.0**exponent).double(), rtol=digits, atol=0)
    assert split_norm(x, False)[1].eq(1).all()


def test_ordinary_norms_are_those_of_the_plain_formula_to_the_bit():
    x = torch.randn(100, 33) * torch.logspace(-6, 6, 100)[:, None]
    query, factor = split_norm(x, True)
    norm = x.norm(dim=-1, keepdim=True)
    assert torch.equal(factor, norm) and torch.equal(query, x / norm)


@pytest.mark.parametrize("huge", [1e20, 3e38])
@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
def test_one_huge_coordinate_is_ranked_like_its_direction_and_never_trained_on(huge, structure):
    sae, x = small_sae(structure=structure, b_dec_init="zeros"), inputs()
    sae.b_dec.data.zero_()
    x[3] = 0
    x[3, 1] = 1.0
    with torch.no_grad():
        ordinary = sae.encode(x)[3]
        x[3, 1] = huge
        acts = sae.encode(x)[3]
    assert acts.isfinite().all() and ordinary.count_nonzero() > 0
    assert torch.equal(acts != 0, ordinary != 0)
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    with pytest.raises(ValueError, match=r"training step 5 .*the loss must be finite, got (inf|nan).*up to [13]e\+"):
        sae.training_forward_pass(step_input(x, step=4))
    torch.testing.assert_close(sae.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "b_dec"])
def test_scores_of_weights_that_are_not_finite_are_refused_on_every_path(name, value):
    sae = new_sae()
    weights = getattr(sae, name).data
    weights[(*[0] * (weights.ndim - 1), 3)] = value
    for call in (sae, sae.encode):
        with pytest.raises(ValueError, match="scores must be finite"):
            call(inputs())
        with torch.no_grad(), pytest.raises(ValueError, match="scores must be finite"):
            call(inputs())


@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
def test_training_names_the_step_at_which_weights_are_not_finite(structure):
    for name, _ in small_sae(structure=structure).named_parameters():
        sae = small_sae(structure=structure)
        sae.get_parameter(name).data.fill_(torch.nan)
        with pytest.raises(ValueError, match=r"training step 7 .*must be finite"):
            sae.training_forward_pass(step_input(inputs(), step=6))


@pytest.mark.parametrize("shape", [(0, 12), (3, 0, 12)], ids=str)
@pytest.mark.parametrize("settings", [{}, {"gate": "relu"}, {"activation_floor": 0.5}], ids=str)
def test_training_refuses_a_batch_without_tokens_before_anything_is_done(settings, shape):
    sae = small_sae(**settings)
    sae.b_dec_is_initialised.fill_(False)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    message = rf"the batch of training step 18 must hold at least one token, got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        sae.training_forward_pass(step_input(torch.zeros(shape), step=17))
    torch.testing.assert_close(dict(sae.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", ["save_model", "save_inference_model"])
def test_loading_refuses_weights_that_are_not_finite_by_name_and_number(form, value, tmp_path):
    getattr(small_sae(), form)(tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    name = "W_dec" if "W_dec" in weights else "dictionary.W_v"
    weights["b_dec"][2:4], weights[name][0, 1] = value, value
    save_file(weights, tmp_path / "sae_weights.safetensors")
    loaders = [SAE.load_from_disk, lambda path: load_sae(str(path))]
    if form == "save_model":
        loaders.append(TrainingSAE.load_from_disk)
    for loader in loaders:
        with pytest.raises(ValueError, match=r"weights.* must be finite, got NaN or infinity: .*2 in b_dec \(12,\)"):
            loader(tmp_path)


def test_what_does_not_fit_into_float16_is_refused(tmp_path):
    sae = new_sae(dtype="float16")
    x = 1e3 * inputs(dtype=torch.float16)
    with torch.no_grad():
        assert sae.encode(x).isfinite().all() and sae(x).isfinite().all()
        sae.W_enc.data *= 300
        with pytest.raises(ValueError, match="in float16 must be at most 65504, got .*: use it in bfloat16 or float32"):
            sae.encode(x)
    wide = new_sae()
    wide.W_enc.data[0, 0] = 1e5
    wide.save_model(tmp_path)
    with pytest.raises(ValueError, match=r"1 in W_enc \("):
        SAE.load_from_disk(tmp_path, dtype="float16")


def test_the_default_target_fits_every_width():
    assert SparsemaxTrainingSAEConfig(d_in=8, d_sae=16).target_l0 == 4
    assert SparsemaxTrainingSAEConfig(d_in=8, d_sae=2).target_l0 == 1
    assert SparsemaxTrainingSAEConfig(d_in=8, d_sae=32).target_l0 == 32
