"""Configurations: what is refused, the presets, and what survives a round trip."""

import dataclasses
import json
import re
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from simple_parsing import ArgumentParser

from sae_lens_sparsemax import PRESETS, SparsemaxSAEConfig, SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig


def config(**settings) -> SparsemaxTrainingSAEConfig:
    return SparsemaxTrainingSAEConfig(**{"d_in": 8, "d_sae": 64} | settings)


@pytest.mark.parametrize(
    ("field", "valid"),
    [
        ("activations", "'scores', 'probabilities'"),
        ("gate", "'sparsemax', 'relu'"),
        ("structure", "'cross_attention', 'mlp'"),
        ("loss_weighting", "'none', 'inverse_norm'"),
        ("b_dec_init", "'first_batch_mean', 'zeros', 'fixed_zeros'"),
    ],
)
def test_unknown_choices_are_refused_with_the_valid_ones(field, valid):
    with pytest.raises(ValueError, match=f"{field} must be one of {valid}, got 'other'"):
        config(**{field: "other"})


@pytest.mark.parametrize("field", ["activations", "gate"])
def test_inference_config_refuses_unknown_choices_too(field):
    with pytest.raises(ValueError, match=f"{field} must be one of .*, got 'other'"):
        SparsemaxSAEConfig(d_in=8, d_sae=64, **{field: "other"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gate_scale", 0.0),
        ("gate_scale", float("nan")),
        ("d_sae", -4),
        ("target_l0", 0.0),
        ("target_l0_rate", -0.1),
        ("init_score_scale", 0.0),
        ("decoder_init_norm", -1.0),
    ],
)
def test_numbers_that_must_be_positive_are_refused_otherwise(field, value):
    with pytest.raises(ValueError, match=f"{field} must be positive, got {value}"):
        config(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("passes", 2.5), ("refinements", "1"), ("d_sae", 64.0), ("d_in", "8")])
def test_counts_are_whole_numbers(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a whole number, got {value!r}"):
        config(**{field: value})
    with pytest.raises(ValueError, match=f"{field} must be a whole number, got {value!r}"):
        SparsemaxSAEConfig(**{"d_in": 8, "d_sae": 64, field: value})


FIELDS = [
    pytest.param(kind, name, hint, id=f"{kind.__name__}-{name}")
    for kind in (SparsemaxSAEConfig, SparsemaxTrainingSAEConfig)
    for name, hint in get_type_hints(kind).items()
    if name in {each.name for each in dataclasses.fields(kind)} and {int, float, bool} & {hint, *get_args(hint)}
]


@pytest.mark.parametrize(("kind", "field", "hint"), FIELDS)
def test_what_is_no_number_and_no_switch_is_refused_by_name(kind, field, hint):
    default = kind(d_in=8, d_sae=64).to_dict()[field]
    for wrong in (str(default), [default], 1 if hint is bool else True):
        with pytest.raises(ValueError, match=re.escape(f"{field} must be ") + ".*" + re.escape(f"got {wrong!r}")):
            kind(**{"d_in": 8, "d_sae": 64, field: wrong})


@pytest.mark.parametrize(("kind", "field", "hint"), FIELDS)
@pytest.mark.parametrize("made", [np.asarray, lambda value: torch.from_numpy(np.asarray(value))])
def test_numbers_and_switches_of_arrays_are_taken_and_can_be_saved(kind, field, hint, made):
    default = kind(d_in=8, d_sae=64).to_dict()[field]
    value = 8.0 if default is None else default
    cfg = kind(**{"d_in": 8, "d_sae": 64, field: made(value)[()]})
    assert cfg.to_dict() == kind(**{"d_in": 8, "d_sae": 64, field: value}).to_dict()
    assert type(getattr(cfg, field)) in (bool, int, float)
    json.dumps(cfg.to_dict())


def test_values_are_checked_too_where_the_command_line_of_saelens_has_read_the_fields():
    ArgumentParser().add_arguments(SparsemaxTrainingSAEConfig, dest="sae")  # which replaces their types by others
    with pytest.raises(ValueError, match="target_l0 must be a number, got 'x'"):
        config(target_l0="x")
    assert type(config(target_l0=np.float64(8)).target_l0) is float


NUMBERS = [
    pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{value}")
    for kind in (SparsemaxSAEConfig, SparsemaxTrainingSAEConfig)
    for name, hint in get_type_hints(kind).items()
    if name in kind.__dataclass_fields__ and {int, float} & {hint, *get_args(hint)}
    for value in ((True,) if hint is int else (float("inf"), float("nan"), -1.0))
    if (name, value) != ("alpha", float("inf"))  # TopK
]


@pytest.mark.parametrize(("kind", "field", "value"), NUMBERS)
def test_numbers_that_are_no_settings_are_refused_by_name(kind, field, value):
    with pytest.raises(ValueError, match=f"{field} must .*, got {value}"):
        kind(**{"d_in": 8, "d_sae": 64, field: value})


def test_a_width_may_be_unknown_in_a_training_config_until_an_sae_is_built():
    unknown = config(d_in=0)
    with pytest.raises(ValueError, match="d_in must be the width of the activations when an SAE is built, got 0"):
        SparsemaxTrainingSAE(unknown)
    known = dataclasses.replace(unknown, d_in=8)
    assert known == config(d_in=8) and SparsemaxTrainingSAE(known).W_dec.shape == (64, 8)
    with pytest.raises(ValueError, match="d_in must be positive, or 0 until the hook tells, got -1"):
        config(d_in=-1)
    with pytest.raises(ValueError, match="d_in must be positive, got 0"):
        SparsemaxSAEConfig(d_in=0, d_sae=64)


def test_a_target_above_the_number_of_concepts_is_refused():
    with pytest.raises(ValueError, match="target_l0 must not exceed d_sae = 64, got 65"):
        config(target_l0=65)


def test_a_negative_penalty_is_refused():
    with pytest.raises(ValueError, match="l1_coefficient must be finite and not negative, got -1"):
        config(l1_coefficient=-1)


def test_relu_takes_no_target_and_no_probabilities():
    with pytest.raises(ValueError, match="set target_l0=None"):
        config(gate="relu")
    with pytest.raises(ValueError, match="activations='scores' only, got 'probabilities'"):
        config(gate="relu", target_l0=None, activations="probabilities")


def test_whitening_is_refused_where_folding_could_not_be_exact():
    with pytest.raises(ValueError, match="covariance_whitening' needs unit_norm_query=False"):
        config(normalize_activations="covariance_whitening")
    with pytest.raises(ValueError, match="needs apply_b_dec_to_input=True"):
        config(normalize_activations="covariance_whitening", unit_norm_query=False, apply_b_dec_to_input=False)
    config(normalize_activations="covariance_whitening", unit_norm_query=False)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_those_after_sources_leave_sparsity_to_the_data(preset):
    chosen = config(**PRESETS[preset])
    assert (chosen.target_l0 is None) == (preset in ("paper", "released"))
    assert chosen.structure == "cross_attention"


def test_what_is_not_given_is_the_best_gate_or_the_papers_where_its_ablations_are_trained():
    best, given = config(), config(alpha=2.0, passes=1)
    assert (best.alpha, best.passes, best.refinements, best.activation_floor) == (3, 2, 1, 0.5)
    assert (given.alpha, given.passes, given.refinements, given.activation_floor) == (2, 1, 1, 0.5)
    for ablation in ({"activations": "probabilities"}, {"gate": "relu", "target_l0": None}):
        plain = config(**ablation)
        assert (plain.alpha, plain.passes, plain.refinements, plain.activation_floor) == (2, 1, 0, 0)
    assert config(activations="probabilities", passes=2).passes == 2
    saved = best.to_dict()
    assert SparsemaxTrainingSAEConfig.from_dict(saved) == best
    assert (best.floor_of, config(**PRESETS["features"]).floor_of) == ("dictionary", "concept")
    del saved["floor_of"]
    assert SparsemaxTrainingSAEConfig.from_dict(saved).floor_of == "concept"
    for name in ("passes", "refinements", "activation_floor", "map_lr_scale"):
        del saved[name]
    old = SparsemaxTrainingSAEConfig.from_dict(saved)
    assert (old.passes, old.map_lr_scale) == (1, 1)
    assert config().metadata.training_architecture_details["floor_of"] == "dictionary"


@pytest.mark.parametrize(("d_in", "scale"), [(64, 1.0), (576, 1.0), (1152, 0.25), (4608, 1 / 64)])
def test_maps_learn_the_slower_the_wider_they_are(d_in, scale):
    narrow = SparsemaxTrainingSAEConfig(d_in=0, d_sae=64)
    assert dataclasses.replace(narrow, d_in=d_in).map_lr_scale == scale
    assert SparsemaxTrainingSAEConfig(d_in=d_in, d_sae=64, **PRESETS["paper"]).map_lr_scale == 1


@pytest.mark.parametrize("scale", [0, -0.1])
def test_projections_learn_at_a_positive_rate(scale):
    with pytest.raises(ValueError, match=f"map_lr_scale must be positive, got {scale}"):
        config(map_lr_scale=scale)


def test_presets_differ_as_their_sources_do():
    paper, released = config(**PRESETS["paper"]), config(**PRESETS["released"])
    assert (paper.activations, paper.query_projection, paper.unit_norm_query) == ("probabilities", True, False)
    assert (released.activations, released.query_projection, released.unit_norm_query) == ("scores", False, True)
    assert (paper.loss_weighting, released.loss_weighting) == ("none", "inverse_norm")
    assert (paper.b_dec_init, released.b_dec_init) == ("zeros", "fixed_zeros")


def test_a_dictionary_of_a_config_makes_the_same_config():
    original = config(target_l0=None, gate_scale=1 / 3, structure="mlp", decoder_init_norm=0.5)
    assert SparsemaxTrainingSAEConfig.from_dict(original.to_dict()) == original


def test_the_inference_form_keeps_the_gate_and_names_the_package():
    chosen = config(activations="probabilities", unit_norm_query=False, gate_scale=0.7)
    inference = chosen.get_inference_sae_cfg_dict()
    assert inference["architecture"] == "sparsemax"
    assert inference["metadata"]["package"] == "sae_lens_sparsemax"
    assert inference["metadata"]["training_architecture_details"]["structure"] == "cross_attention"
    loaded = SparsemaxSAEConfig.from_dict(inference)
    assert (loaded.activations, loaded.unit_norm_query, loaded.gate_scale) == ("probabilities", False, 0.7)


def test_gates_that_are_none_are_refused_and_topk_starts_at_its_target():
    with pytest.raises(ValueError, match=r"alpha must be at least 2, got 1.5"):
        config(alpha=1.5)
    with pytest.raises(ValueError, match=r"alpha must be at most 32 where activations are probabilities, got inf"):
        config(alpha=float("inf"), activations="probabilities", target_l0=None)
    assert config(alpha=float("inf"), passes=1, target_l0=4).gate_scale == 0.25
    assert config(alpha=float("inf"), passes=2, target_l0=4).gate_scale == 0.5
    assert config(alpha=3.0, target_l0=4).gate_scale == 1.0
    saved = SparsemaxSAEConfig(d_in=8, d_sae=64, alpha=float("inf")).to_dict()
    assert SparsemaxSAEConfig.from_dict(saved).alpha == float("inf")
    del saved["alpha"]  # as a version wrote it that knew sparsemax alone
    assert SparsemaxSAEConfig.from_dict(saved).alpha == 2
