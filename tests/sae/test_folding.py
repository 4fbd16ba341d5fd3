"""Folding: from training parameters to inference weights, and from normalised to raw activations."""

import copy

import pytest
import torch
from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_sparsemax import SparsemaxSAE
from sae_lens_sparsemax.sae import folding
from sae_lens_sparsemax.sae.folding import fold_checkpoint
from sae_lens_sparsemax.sae.weights import is_training_checkpoint
from tests.support.small_sae import inputs, small_sae

VARIANTS = [
    {"structure": structure, "unit_norm_query": unit_norm, "query_projection": projection}
    for structure in ("cross_attention", "mlp")
    for unit_norm in (True, False)
    for projection in (False, True)
    if not (structure == "mlp" and projection)
]
VARIANTS += [
    {"structure": "cross_attention", "unit_norm_query": unit_norm, "alpha": 3.0} for unit_norm in (True, False)
]
VARIANTS += [{"structure": "mlp", "unit_norm_query": True, "passes": 2}]
VARIANTS += [
    {"structure": "cross_attention", "unit_norm_query": unit, "query_projection": not unit, "map_lr_scale": 0.1}
    for unit in (True, False)
]
VARIANTS += [
    {"structure": structure, "unit_norm_query": True, "passes": 3, "map_lr_scale": 0.25}
    for structure in ("cross_attention", "mlp")
]
VARIANTS += [
    {"structure": "cross_attention", "unit_norm_query": unit, "passes": 3, "activation_floor": 0.6}
    for unit in (True, False)
]
VARIANTS += [
    {"structure": "cross_attention", "unit_norm_query": unit, "query_projection": not unit, "encoder_bias": True}
    for unit in (True, False)
]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def loaded(sae, folder) -> SparsemaxSAE:
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder)


@pytest.mark.parametrize("activations", ["scores", "probabilities"])
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_folded_sae_computes_what_the_training_one_does(settings, activations, tmp_path):
    sae, x = small_sae(dtype="float64", activations=activations, **settings), inputs(dtype=torch.float64)
    folded = loaded(sae, tmp_path)
    assert type(folded) is SparsemaxSAE
    torch.testing.assert_close(folded.W_enc.detach(), sae.W_enc, **CLOSE)
    torch.testing.assert_close(folded.W_dec.detach(), sae.W_dec, **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(folded.encode(x), sae.encode(x), **CLOSE)
        torch.testing.assert_close(folded(x), sae(x), **CLOSE)


def test_products_are_made_block_by_block_and_rounded_once(monkeypatch):
    monkeypatch.setattr(folding, "_CONCEPTS_OF_A_BLOCK", 128)
    sae = small_sae(query_projection=True, d_sae=300)
    state = sae.state_dict()
    exact = (
        state["dictionary.W_q"].double() @ state["dictionary.W_k"].double().T @ state["dictionary.concepts"].double().T
    )
    assert is_training_checkpoint(state)
    fold_checkpoint(state)
    assert torch.equal(state["W_enc"], exact.float()) and state["W_enc"].is_contiguous()
    assert set(state) == {"W_enc", "b_enc", "W_dec", "b_dec"}
    assert not is_training_checkpoint(state)


def test_folding_for_a_save_leaves_the_sae_as_it_was(tmp_path):
    sae = small_sae()
    before = copy.deepcopy(sae.state_dict())
    sae.save_inference_model(tmp_path)
    torch.testing.assert_close(sae.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["training", "inference"])
@pytest.mark.parametrize("with_offset", [True, False])
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_an_average_norm_is_folded_exactly(settings, with_offset, form, tmp_path):
    """Outputs on raw activations equal the rescaled outputs on scaled ones; supports do not change."""
    sae = small_sae(
        dtype="float64",
        apply_b_dec_to_input=with_offset,
        normalize_activations="expected_average_only_in",
        **settings,
    )
    x, factor = inputs(dtype=torch.float64), 0.37
    sae = loaded(sae, tmp_path) if form == "inference" else sae
    with torch.no_grad():
        support, expected = sae.encode(factor * x) != 0, sae(factor * x) / factor
        sae.fold_activation_norm_scaling_factor(factor)
        assert torch.equal(sae.encode(x) != 0, support)
        torch.testing.assert_close(sae(x), expected, **CLOSE)
    assert sae.cfg.normalize_activations == "none"


@pytest.mark.parametrize("form", ["training", "inference"])
@pytest.mark.parametrize("with_offset", [True, False])
@pytest.mark.parametrize("settings", [v for v in VARIANTS if not v["unit_norm_query"]], ids=str)
def test_a_whitening_is_folded_exactly_for_raw_queries(settings, with_offset, form, tmp_path):
    has_bias = settings["structure"] == "mlp" or settings.get("encoder_bias")
    if not has_bias and not with_offset:
        pytest.skip("the config refuses it")
    sae = small_sae(
        dtype="float64",
        apply_b_dec_to_input=with_offset,
        normalize_activations="covariance_whitening",
        **settings,
    )
    x, scaler = inputs(400, dtype=torch.float64), ActivationScaler()
    scaler.estimate_whitening(x.shape[1], iter([x]), 1)
    sae = loaded(sae, tmp_path) if form == "inference" else sae
    with torch.no_grad():
        acts, expected = sae.encode(scaler.scale(x)), scaler.unscale(sae(scaler.scale(x)))
        whitening = scaler.whitening
        sae.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
        torch.testing.assert_close(sae.encode(x), acts, **CLOSE)
        torch.testing.assert_close(sae(x), expected, **CLOSE)
    assert sae.cfg.normalize_activations == "none"


@pytest.mark.parametrize("form", ["training", "inference"])
def test_a_whitening_is_refused_behind_unit_norm_queries(form, tmp_path):
    sae = small_sae()
    sae = loaded(sae, tmp_path) if form == "inference" else sae
    eye = torch.eye(12)
    before = copy.deepcopy(sae.state_dict())
    with pytest.raises(NotImplementedError, match="unit_norm_query=True"):
        sae.fold_activation_whitening(torch.zeros(12), eye, eye)
    torch.testing.assert_close(sae.state_dict(), before, rtol=0, atol=0)


def test_a_shift_is_refused_where_no_bias_could_take_it():
    eye = torch.eye(12)
    sae = small_sae(unit_norm_query=False, apply_b_dec_to_input=False)
    before = copy.deepcopy(sae.state_dict())
    with pytest.raises(NotImplementedError, match="no bias"):
        sae.fold_activation_whitening(torch.ones(12), 2 * eye, eye / 2)
    torch.testing.assert_close(sae.state_dict(), before, rtol=0, atol=0)
