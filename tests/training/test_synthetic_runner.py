"""Training on synthetic data: SAELens's result and files, and what every run of ours has."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, StandardTrainingSAEConfig, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunner, SyntheticSAERunnerConfig

from sae_lens_sparsemax import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.files import file_facts
from sae_lens_sparsemax.training.checkpoints import list_checkpoints
from sae_lens_sparsemax.training.config import SyntheticRunnerConfig
from sae_lens_sparsemax.training.log import read_metrics
from sae_lens_sparsemax.training.synthetic_runner import SyntheticTrainingRunner


def settings(output: Path | None, **changes) -> dict:
    return {
        "synthetic_model": SyntheticModelConfig(num_features=12, hidden_dim=8, std_firing_magnitudes=0.1, seed=3),
        "sae": TopKTrainingSAEConfig(d_in=0, d_sae=16, k=2),
        "training_samples": 64 * 20,
        "batch_size": 64,
        "lr": 1e-2,
        "eval_samples": 256,
        "output_path": None if output is None else str(output),
        "checkpoint_path": None if output is None else str(output / "checkpoints"),
        "logger": LoggingConfig(log_to_wandb=False),
        **changes,
    }


def config(output: Path | None = None, **changes) -> SyntheticRunnerConfig:
    return SyntheticRunnerConfig(**settings(output, **changes))


def assert_same_weights(one, other) -> None:
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=0, atol=0)


def test_it_trains_what_the_hosts_runner_trains_and_leaves_the_same_files(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    torch.manual_seed(0)
    sae = TopKTrainingSAEConfig(d_in=8, d_sae=16, k=2)
    host = SyntheticSAERunner(SyntheticSAERunnerConfig(**settings(theirs, sae=sae))).run()
    torch.manual_seed(0)
    cfg = config(ours)
    result = SyntheticTrainingRunner(cfg).run()
    for name, tensor in host.sae.state_dict().items():  # Adam's fused update rounds otherwise
        torch.testing.assert_close(result.sae.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert result.final_eval.mcc == pytest.approx(host.final_eval.mcc, abs=1e-3)
    assert result.output_path == ours
    assert {path.name for path in theirs.iterdir()} <= {path.name for path in ours.iterdir()}
    assert json.loads((ours / "eval_stats.json").read_text())["mcc"] == result.final_eval.mcc
    assert SAE.load_from_disk(ours).cfg.d_in == 8
    assert [line["step"] for line in read_metrics(ours / "metrics.jsonl")] == [10, 20]
    assert (ours / "training_curves.png").is_file()


@pytest.mark.usefixtures("without_pictures")
def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    torch.manual_seed(1)
    whole = SyntheticTrainingRunner(config(tmp_path, n_checkpoints=2, eval_frequency=4)).run()
    checkpoints = list_checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in checkpoints] == ["448", "896"]
    evaluated = read_metrics(tmp_path / "evaluation.jsonl")
    assert [line["step"] for line in evaluated] == [4, 8, 12, 16, 20]
    torch.manual_seed(99)
    resumed = SyntheticTrainingRunner(config(tmp_path, eval_frequency=4, resume_from_checkpoint=str(checkpoints[0])))
    assert_same_weights(whole.sae, resumed.run().sae)
    assert read_metrics(tmp_path / "evaluation.jsonl") == evaluated


@pytest.mark.usefixtures("without_pictures")
def test_the_model_of_the_data_is_replaced_with_the_sae_beside_it(tmp_path):
    SyntheticTrainingRunner(config(tmp_path, save_synthetic_model=True)).run()
    before = file_facts([str(tmp_path / "synthetic_model")])
    changes = {"save_synthetic_model": True, "synthetic_model": SyntheticModelConfig(num_features=9, hidden_dim=8)}
    SyntheticTrainingRunner(config(tmp_path, **changes)).run(overwrite=True)
    assert file_facts([str(tmp_path / "synthetic_model")]) != before
    again = SyntheticTrainingRunner(config(synthetic_model=str(tmp_path / "synthetic_model")))
    assert again.model.cfg.num_features == 9
    assert not (tmp_path / ".new").exists()


def test_evaluation_and_output_are_the_runs_own_choice():
    result = SyntheticTrainingRunner(config(run_final_eval=False)).run()
    assert result.final_eval is None and result.output_path is None


def test_a_width_that_is_not_the_models_is_refused():
    with pytest.raises(ValueError, match=r"'sae\.d_in' is 9, .* are 8 wide"):
        config(sae=TopKTrainingSAEConfig(d_in=9, d_sae=16, k=2))
    cfg = config()
    assert cfg.sae.d_in == 8
    cfg.sae.d_in = 9
    with pytest.raises(ValueError, match=r"'sae\.d_in' is 9, .* are 8 wide"):
        SyntheticTrainingRunner(cfg)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training_samples": 63}, "training_samples must be at least one batch"),
        ({"device": "gpu"}, "device must be a torch device"),
        ({"lr_scheduler_name": "cosine"}, "did you mean 'cosineannealing'"),
    ],
)
def test_mistakes_are_named_before_training(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    "sae",
    [
        TopKTrainingSAEConfig(d_in=0, d_sae=16, k=2),
        StandardTrainingSAEConfig(d_in=0, d_sae=16),
        SparsemaxTrainingSAEConfig(d_in=0, d_sae=16),
    ],
    ids=lambda cfg: cfg.architecture(),
)
def test_a_run_that_diverges_stops_at_the_step_and_leaves_its_last_checkpoint(sae, tmp_path):
    cfg = config(tmp_path, sae=sae, n_checkpoints=3)
    runner = SyntheticTrainingRunner(cfg)
    forward, n_calls = runner.sae.training_forward_pass, 0

    def poisoned(step_input):
        nonlocal n_calls
        n_calls += 1
        output = forward(step_input)
        return replace(output, loss=output.loss * torch.nan) if n_calls == 13 else output

    runner.sae.training_forward_pass = poisoned
    with pytest.raises(ValueError, match=r"training stopped at step 13: its loss \(nan\) .* lower lr \(0.01\)"):
        runner.run()
    assert [int(path.name) for path in list_checkpoints(tmp_path / "checkpoints")] == [64 * 6, 64 * 11]
    assert not (tmp_path / "sae_weights.safetensors").exists()
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 10


def test_weights_that_explain_nothing_in_the_end_are_not_passed_over(tmp_path, caplog):
    SyntheticTrainingRunner(config(tmp_path / "sound")).run()
    assert not caplog.text
    SyntheticTrainingRunner(config(tmp_path / "wrong", sae=TopKTrainingSAEConfig(d_in=0, d_sae=16, k=2), lr=10.0)).run()
    assert re.search(r"explained variance -\S+\. If the loss rose in the end, lower lr \(10\)", caplog.text)


@pytest.mark.parametrize("lr", [1e300, 1e19])
def test_a_rate_that_is_far_too_high_stops_the_run(lr, tmp_path):
    for sae in (TopKTrainingSAEConfig(d_in=0, d_sae=16, k=2), SparsemaxTrainingSAEConfig(d_in=0, d_sae=16)):
        with pytest.raises(ValueError, match=r"training (stopped at )?step \d+.*lower"):
            SyntheticTrainingRunner(config(tmp_path / sae.architecture(), sae=sae, lr=lr)).run()
        assert not (tmp_path / sae.architecture() / "sae_weights.safetensors").exists()


def test_training_in_float16_is_refused():
    with pytest.raises(ValueError, match="sae.dtype must be bfloat16, float32 or float64.*, got 'float16'"):
        config(sae=TopKTrainingSAEConfig(d_in=0, d_sae=16, k=2, dtype="float16"))
