"""Logging to wandb without a network, in a process of its own: wandb keeps global state."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY as ROOT


@pytest.mark.slow
def test_an_offline_run_logs_to_wandb_and_to_json_lines(tmp_path: Path):
    short = ["--training_tokens", "6144", "--lr_warm_up_steps", "0", "--lr_decay_steps", "0", "--n_eval_batches", "1"]
    logger = ["--logger.log_to_wandb", "true", "--logger.wandb_log_frequency", "2"]
    logger += ["--logger.eval_every_n_wandb_logs", "2"]
    subprocess.run(
        [
            *(sys.executable, "-m", "sae_lens_sparsemax", "train", str(ROOT / "configs" / "quickstart.yaml")),
            *(*short, *logger, "--output_path", str(tmp_path / "out")),
        ],
        cwd=tmp_path,
        env={**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=240,
    )
    runs = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1
    logged = runs[0].read_bytes()
    for name in ("metrics/gate_scale", "metrics/l0_p95", "metrics/tau", "metrics/score_std", "ce_loss_score"):
        assert name.encode() in logged, name
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
