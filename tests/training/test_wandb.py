"""Logging to wandb without a network, in a process of its own: wandb keeps global state."""

import json
import os
from pathlib import Path

import pytest

from sae_lens_sparsemax.cli.main import main
from tests.support.started_ranks import StartedRanks


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
