"""Logging to wandb without a network, in a process of its own: wandb keeps global state."""

import json
import os
import shutil
from pathlib import Path

import pytest
import wandb
from sae_lens.config import LoggingConfig

from sae_lens_sparsemax import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.training.checkpoints import list_checkpoints
from sae_lens_sparsemax.training.config import TextRunnerConfig
from sae_lens_sparsemax.training.text_runner import TextTrainingRunner
from tests.support.started_ranks import StartedRanks
from tests.support.tiny_language_model import documents


def train_in(folder: Path, words: list[str]) -> int:
    os.chdir(folder)
    os.environ["WANDB_MODE"] = "offline"
    return main(["train", "quickstart", *words])


@pytest.mark.slow
def test_an_offline_run_logs_to_wandb_and_to_json_lines(tmp_path: Path):
    short = ["--training_tokens", "6144", "--lr_warm_up_steps", "0", "--lr_decay_steps", "0", "--n_eval_batches", "1"]
    logger = ["--logger.log_to_wandb", "true", "--logger.wandb_log_frequency", "2"]
    logger += ["--logger.eval_every_n_wandb_logs", "2"]
    run = StartedRanks(1, tmp_path / "printed", train_in, tmp_path, [*short, *logger, "--output_path", "out"])
    assert run.wait(240) == [0], run.printed()[-2000:]
    runs = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1
    logged = runs[0].read_bytes()
    for name in ("metrics/gate_scale", "metrics/l0_p95", "metrics/tau", "metrics/score_std", "ce_loss_score"):
        assert name.encode() in logged, name
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("is_taken", [True, False])
def test_an_sae_is_saved_whatever_wandb_makes_of_its_models_name(
    is_taken, tiny_model_folder, tmp_path, monkeypatch, caplog
):
    taken = []

    def take(artifact, **_):
        if not is_taken:
            raise OSError("no space left")
        taken.append(artifact.name)

    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(wandb, "log_artifact", take)
    for name in ("init", "log", "finish"):
        monkeypatch.setattr(wandb, name, lambda *_, **__: None)
    (tmp_path / "text.txt").write_text("\n".join(documents(25)))
    model = shutil.copytree(tiny_model_folder, tmp_path / "My models (é)" / ("m" * 120))
    cfg = TextRunnerConfig(
        SparsemaxTrainingSAEConfig(d_in=0, d_sae=16, target_l0=4),
        model_name=str(model),
        model_class_name="TransformerBridge",
        hook_name="blocks.0.hook_out",
        dataset_path=str(tmp_path / "text.txt"),
        is_dataset_tokenized=False,
        context_size=16,
        train_batch_size_tokens=32,
        training_tokens=128,
        n_checkpoints=1,
        verbose=False,
        output_path=str(tmp_path / "run"),
        checkpoint_path=str(tmp_path / "checkpoints"),
        logger=LoggingConfig(log_to_wandb=True),
    )
    TextTrainingRunner(cfg).run()
    assert (tmp_path / "run" / "sae_weights.safetensors").is_file()
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 1
    if is_taken:
        assert all(name.split("_log_feature")[0].endswith("mmm_blocks.0.hook_out_16") for name in taken)
        assert len(taken) == 4
    else:
        assert caplog.text.count("wandb has no copy of this SAE: no space left") == 2
