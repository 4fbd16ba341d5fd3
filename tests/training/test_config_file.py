import json

import pytest
import yaml
from sae_lens import TopKTrainingSAEConfig
from sae_lens.synthetic import SyntheticSAERunnerConfig, ZipfianFiringProbabilityConfig

from sae_lens_sparsemax import PRESETS, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.training.config import TextRunnerConfig
from sae_lens_sparsemax.training.config_file import config_from_values, load_config
from tests.support.places import CONFIGS

TEXT = {
    "model_name": "gpt2",
    "hook_name": "blocks.6.hook_resid_post",
    "dataset_path": "some/text",
    "n_batches_in_buffer": 64,
    "sae": {"d_sae": 1024},
}
SYNTHETIC = {
    "runner": "synthetic",
    "synthetic_model": {"num_features": 8, "hidden_dim": 4},
    "sae": {"architecture": "topk", "d_sae": 8, "k": 2},
}


def with_changes(values: dict, **changes) -> dict:
    return {**values, **changes}


def test_a_short_file_gives_the_sparsemax_defaults():
    runner, config = config_from_values(TEXT)
    assert runner == "language_model"
    assert isinstance(config, TextRunnerConfig)
    assert isinstance(config.sae, SparsemaxTrainingSAEConfig)
    assert config.sae.target_l0 == SparsemaxTrainingSAEConfig(d_in=1, d_sae=1024).target_l0
    assert config.sae.d_in == 0  # read from the model later
    assert not config.logger.log_to_wandb
    assert not config.dataset_trust_remote_code


def test_checkpoints_go_below_the_output_without_a_random_suffix():
    assert config_from_values(with_changes(TEXT, output_path="here")).config.checkpoint_path == "here/checkpoints"
    assert config_from_values(with_changes(TEXT, checkpoint_path="there")).config.checkpoint_path == "there"
    assert config_from_values(with_changes(TEXT, checkpoint_path=None)).config.checkpoint_path is None


def test_numbers_may_be_written_in_any_usual_form(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(TEXT) + "lr: 4e-4\ntraining_tokens: 2e6\nlr_warm_up_steps: '10'\n")
    config = load_config(path, {"lr_decay_steps": 20.0, "seqpos_slice": [1, None]}).config
    assert (config.lr, config.training_tokens, config.lr_warm_up_steps) == (4e-4, 2_000_000, 10)
    assert isinstance(config.training_tokens, int)
    assert config.lr_decay_steps == 20
    assert config.seqpos_slice == (1, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1}, "learning_rate is not a valid key; did you mean .+"),
        ({"hook_nam": "x"}, "hook_nam is not a valid key; did you mean hook_name"),
        ({"target_l0": 3}, r"target_l0 is not a valid key at the top level; did you mean sae\.target_l0"),
        ({"log_to_wandb": True}, r"did you mean logger\.log_to_wandb"),
        ({"sae": {"d_sae": 8, "targt_l0": 3}}, r"sae\.targt_l0 is not a valid key; did you mean sae\.target_l0"),
        ({"logger": {"wandb_projekt": "x"}}, r"did you mean logger\.wandb_project"),
        (
            {"sae": {"d_sae": 8, "architecture": "sparsmax"}},
            r"sae\.architecture must be one of .*, got 'sparsmax'; did you mean 'sparsemax'",
        ),
        (
            {"sae": {"d_sae": 8, "preset": "papr"}},
            r"sae\.preset must be one of paper, .*; did you mean 'paper'",
        ),
        (
            {"sae": {"d_sae": 8, "architecture": "topk", "preset": "paper"}},
            r"must be 'sparsemax', to which .*, got 'topk'",
        ),
        ({"sae": {"d_sae": 8, "activations": "score"}}, r"sae\.activations must be .*; did you mean 'scores'"),
        ({"sae": {"d_sae": 8, "architecture": "topk", "k": "abc"}}, r"sae\.k must be a whole number, got 'abc'"),
        ({"sae": {"d_sae": 8, "architecture": "topk", "k": 2.5}}, r"sae\.k must be a whole number, got 2\.5"),
        ({"sae": None}, "sae must be given"),
        ({"sae": {"k": 2, "architecture": "topk"}}, r"sae\.d_sae must be given"),
        ({"sae": "topk"}, "sae must be a group of keys, got 'topk'"),
        ({"sae": {"d_sae": 8, "target_l0": -1}}, "target_l0 must be positive"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"lr": 0}, "lr must be above 0, got 0"),
        ({"lr": float("inf")}, "lr must be a number, got inf"),
        ({"streaming": 1}, "streaming must be true or false, got 1"),
        ({"training_tokens": True}, "training_tokens must be a whole number, got True"),
        ({"training_tokens": 0}, "training_tokens must be at least 1, got 0"),
        ({"context_size": -5}, "context_size must be at least 1, got -5"),
        ({"model_name": 3}, "model_name must be text .*, got 3"),
        ({"sequence_separator_token": "boss"}, "or one of bos, eos, sep or null, got 'boss'; did you mean 'bos'"),
        ({"seqpos_slice": ["a"]}, "seqpos_slice must be a list of whole numbers or null"),
        ({"lr_scheduler_name": "cosine"}, "did you mean 'cosineannealing'"),
        ({"adam_beta1": 1.0}, "adam_beta1 must be at least 0 and below 1, got 1.0"),
        ({"adam_beta2": -0.5}, "adam_beta2 must be at least 0 and below 1, got -0.5"),
        (
            {"lr_scheduler_name": "CosineAnnealingWarmRestarts", "n_restart_cycles": 400, "lr_decay_steps": 100},
            "n_restart_cycles must be at most the 388 steps between warm-up and decay, got 400",
        ),
        (
            {"lr_scheduler_name": "cosineannealing", "lr_end": 0, "lr_decay_steps": 9},
            "lr_end must be above 0 and at most lr, 0.0003, for lr_decay_steps to begin at, got 0",
        ),
        (
            {"lr_scheduler_name": "cosineannealing", "lr_end": 0.01, "lr_decay_steps": 9},
            "lr_end must be above 0 and at most lr, 0.0003, .* got 0.01",
        ),
        (
            {"sae_compilation_mode": "max-autotun"},
            "sae_compilation_mode must be one of .*; did you mean 'max-autotune'",
        ),
        ({"llm_compilation_mode": "fast"}, "llm_compilation_mode must be one of default, .*, got 'fast'"),
        ({"model_class_name": "HookedTransfomer"}, "did you mean 'HookedTransformer'"),
        ({"dtype": "float31"}, "did you mean 'float32'"),
        ({"device": "gpu"}, "device must be a torch device .*, got 'gpu'"),
        ({"device": "meta"}, r"device must be a device that torch finds here \(no META, so cpu\), got 'meta'"),
        ({"act_store_device": "xla:0"}, "act_store_device must be a device that torch finds here .*, got 'xla:0'"),
        ({"llm_device": "cpu:3"}, r"llm_device must be .* \(1 of the kind cpu\), got 'cpu:3'"),
        ({"dataset_trust_remote_code": True}, "code from a data set is never run"),
        ({"model_from_pretrained_kwargs": {"trust_remote_code": True}}, "code from a model's repository is never run"),
        ({"n_batches_in_buffer": 2}, "n_batches_in_buffer must be at least 32, .* got 2"),
        ({"training_tokens": 100}, "must be at least one batch"),
        ({"activations_mixing_fraction": 2}, "must be between 0 and 1, got 2"),
        ({"runner": "syntetic"}, "did you mean 'synthetic'"),
        ({"model_name": None}, "model_name must be given"),
        ({"dataset_path": ""}, "dataset_path must be given"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        config_from_values(with_changes(TEXT, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"num_features": 8, "hiden_dim": 4},
            r"did you mean synthetic_model\.hidden_dim",
        ),
        (
            {"num_features": 8, "hidden_dim": 4, "correlation": {"rnk": 1}},
            r"did you mean synthetic.*correlation\.rank",
        ),
        (
            {"num_features": 8, "hidden_dim": 4, "firing_probability": {"generator_name": "zipf"}},
            r"synthetic_model\.firing_probability\.generator_name must be .*; did you mean 'zipfian'",
        ),
        (
            {"num_features": 8, "hidden_dim": 4, "mean_firing_magnitudes": {"generator_name": "linear", "strt": 1}},
            r"did you mean synthetic_model\.mean_firing_magnitudes\.start",
        ),
        ({"num_features": 0, "hidden_dim": 4}, "num_features must be at least 1"),
    ],
)
def test_mistakes_deep_in_the_synthetic_model_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        config_from_values(with_changes(SYNTHETIC, synthetic_model=model))


def test_the_synthetic_runner_gets_its_width_from_the_model():
    model = {"num_features": 8, "hidden_dim": 4, "firing_probability": {"generator_name": "zipfian", "exponent": 2}}
    runner, config = config_from_values(with_changes(SYNTHETIC, synthetic_model=model))
    assert runner == "synthetic"
    assert isinstance(config, SyntheticSAERunnerConfig)
    assert config.sae.d_in == 4
    assert config.synthetic_model.firing_probability == ZipfianFiringProbabilityConfig(exponent=2.0)
    assert config.checkpoint_path == "output/checkpoints"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_keys_beside_a_preset_replace_it(name):
    sae = config_from_values(with_changes(TEXT, sae={"d_sae": 8, "preset": name})).config.sae
    assert {key: getattr(sae, key) for key in PRESETS[name]} == PRESETS[name]
    sae = config_from_values(with_changes(TEXT, sae={"d_sae": 8, "preset": name, "target_l0": 4})).config.sae
    assert sae.target_l0 == 4


def test_other_architectures_work_too():
    sae = config_from_values(with_changes(TEXT, sae={"architecture": "topk", "d_sae": 8, "k": 2})).config.sae
    assert isinstance(sae, TopKTrainingSAEConfig)
    assert sae.k == 2


def test_device_and_dtype_reach_the_sae():
    assert config_from_values(with_changes(TEXT, dtype="bfloat16")).config.sae.dtype == "bfloat16"


@pytest.mark.parametrize("values", [TEXT, SYNTHETIC], ids=["language_model", "synthetic"])
def test_the_description_of_a_configuration_reads_back_as_the_same(values, tmp_path):
    loaded = config_from_values(values)
    (tmp_path / "again.yaml").write_text(loaded.describe())
    again = load_config(tmp_path / "again.yaml")
    assert json.loads(json.dumps(again.config.to_dict())) == json.loads(json.dumps(loaded.config.to_dict()))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_is_valid(path):
    config = load_config(path).config
    assert config.output_path == f"output/{path.stem}"


@pytest.mark.parametrize(("more", "steps"), [(0, "4"), (1, "5"), (4095, "5")])
def test_the_description_tells_the_steps_that_are_taken(more, steps):
    text = config_from_values(with_changes(TEXT, training_tokens=4 * 4096 + more)).describe()
    images = config_from_values(with_changes(TEXT, runner="vision", training_tokens=4 * 4096 + more)).describe()
    synthetic = config_from_values(with_changes(SYNTHETIC, training_samples=4 * 1024 + more // 4)).describe()
    assert {each.split("\n")[0] for each in (text, images)} == {f"# {steps} steps"}
    assert synthetic.startswith(f"# {4 if more < 4 else 5} steps\n")


def test_null_takes_out_a_key_that_another_architecture_does_not_have(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "{runner: synthetic, synthetic_model: {num_features: 9, hidden_dim: 8}, sae: {d_sae: 16, target_l0: 4}}",
        encoding="utf-8",
    )
    loaded = load_config(path, {"sae.architecture": "topk", "sae.target_l0": None, "sae.k": 3})
    assert loaded.config.sae.architecture() == "topk" and loaded.config.sae.k == 3
    with pytest.raises(ValueError, match=r"sae\.target_l0 is not a valid key"):
        load_config(path, {"sae.architecture": "topk"})
