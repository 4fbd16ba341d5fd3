"""SAELens's own command line, after this package's import."""

import json

import pytest
from sae_lens.llm_sae_training_runner import _parse_cfg_args, _run_cli

from sae_lens_sparsemax import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.data.quickstart import quickstart_model_path, quickstart_text_path
from tests.support.started_ranks import StartedRanks


def parse(*flags: str) -> SparsemaxTrainingSAEConfig:
    return _parse_cfg_args(["--architecture", "sparsemax", "--log_to_wandb", "false", *flags]).sae


def test_the_architecture_is_a_choice_with_our_defaults():
    sae = parse("--d_in", "64", "--d_sae", "256")
    assert type(sae) is SparsemaxTrainingSAEConfig
    expected = SparsemaxTrainingSAEConfig(d_in=64, d_sae=256)
    assert {**sae.to_dict(), "metadata": None} == {**expected.to_dict(), "metadata": None}


def test_our_flags_are_parsed_to_their_types():
    sae = parse(
        *("--structure", "mlp", "--activations", "probabilities", "--unit_norm_query", "false"),
        *("--query_projection", "true", "--gate_scale", "0.5", "--loss_weighting", "inverse_norm"),
        *("--b_dec_init", "zeros", "--decoder_init_norm", "0.25", "--target_l0", "16"),
    )
    assert (sae.structure, sae.activations, sae.unit_norm_query, sae.query_projection) == (
        *("mlp", "probabilities", False, True),
    )
    assert (sae.gate_scale, sae.loss_weighting, sae.b_dec_init) == (0.5, "inverse_norm", "zeros")
    assert (sae.decoder_init_norm, sae.target_l0) == (0.25, 16.0)


def test_a_target_can_be_switched_off():
    sae = parse("--gate", "relu", "--target_l0", "none", "--l1_coefficient", "3", "--decoder_init_norm", "None")
    assert sae.gate == "relu" and sae.target_l0 is None and sae.decoder_init_norm is None


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--structure", "dense", "choose from 'cross_attention', 'mlp'"),
        ("--target_l0", "many", "invalid number_or_none value: 'many'"),
        ("--target_l0", "-3", "target_l0 must be positive, got -3"),
    ],
)
def test_bad_values_are_refused(flag, value, message):
    with pytest.raises(Exception, match=message):
        parse(flag, value)


def test_help_tells_what_each_of_our_fields_does(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "--target_l0 [float] Mean concepts per token to hold during training",
        '--structure {cross_attention,mlp} "cross_attention" shares the concepts between encoder and decoder',
        "--gate_scale float g, the multiple of the scores that the gate looks at",
        "--b_dec_init {first_batch_mean,zeros,fixed_zeros} b_dec starts at the mean of the first training batch",
    ):
        assert words in shown


@pytest.mark.slow
def test_the_trainer_runs_from_the_shell(tmp_path):
    """As a user would: import the package, hand the arguments to SAELens."""
    flags = {
        "architecture": "sparsemax",
        "d_in": 128,
        "d_sae": 256,
        "target_l0": 8,
        "model_name": quickstart_model_path(),
        "model_class_name": "AutoModelForCausalLM",
        "hook_name": "transformer.h.2",
        "dataset_path": quickstart_text_path(),
        "streaming": "true",
        "is_dataset_tokenized": "false",
        "context_size": 64,
        "training_tokens": 2048,
        "train_batch_size_tokens": 256,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 16,
        "log_to_wandb": "false",
        "checkpoint_path": tmp_path / "checkpoints",
        "output_path": tmp_path / "output",
    }
    arguments = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    shell = StartedRanks(1, tmp_path / "printed", _run_cli, arguments)
    assert shell.wait() == [0], shell.printed()[-2000:]
    config = json.loads((tmp_path / "output" / "cfg.json").read_text())
    assert config["architecture"] == "sparsemax" and config["d_sae"] == 256
    assert config["gate_scale"] != 1.0
