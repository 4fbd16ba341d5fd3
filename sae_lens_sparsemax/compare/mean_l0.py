"""The mean L0 of a trained SAE and the settings it was trained with: what TopK and BatchTopK are matched to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens.constants import RUNNER_CFG_FILENAME

from sae_lens_sparsemax.evaluation.suite.runner import VISION_MODEL_CLASS, evaluate_suite
from sae_lens_sparsemax.training.log import METRICS_FILENAME, read_metrics

# Logged steps at the end of the training whose mean stands for the trained SAE.
_LAST_STEPS = 10

# What a run records about itself, and what belongs to one run alone.
_NOT_SETTINGS = {
    "checkpoint_path", "resume_from_checkpoint", "sae_lens_version", "sae_lens_training_version", "tokens_per_buffer",
}  # fmt: skip


def mean_l0(folder: Path, settings: Mapping[str, Any]) -> tuple[float, str]:
    """
    Mean active concepts per token of a trained SAE, and where it was measured.

    Args:
        folder: Folder of the SAE.
        settings: Settings of its suite, to measure on held-out data; without `data`, the training log is read.

    Raises:
        ValueError: If nothing was named to measure on and the folder has no training log.
    """
    if "data" in settings:
        kind = training_settings(folder)["runner"] if (folder / RUNNER_CFG_FILENAME).is_file() else None
        suite = {"vision": "vision", "language_model": "text"}.get(kind or "")
        if suite == "text" or (suite is None and "path" not in settings["data"]):
            name = next(iter(settings["data"]))
            groups = evaluate_suite(str(folder), "text", settings, groups=[f"{name}/reconstruction"]).results["groups"]
            return groups[f"{name}/reconstruction"]["l0"]["mean"], f"measured on {name}"
        groups = evaluate_suite(str(folder), "vision", settings, groups=["sparsity"]).results["groups"]
        return groups["sparsity"]["per_token"]["mean"], f"measured on {settings['data']['path']}"
    lines = [line for line in read_metrics(folder / METRICS_FILENAME) if line.get("metrics/l0") is not None]
    if not lines:
        raise ValueError(f"{folder} has no {METRICS_FILENAME} with L0: give --data.path to measure on, or --l0.")
    last = [line["metrics/l0"] for line in lines[-_LAST_STEPS:]]
    return sum(last) / len(last), f"mean of the last {len(last)} logged training steps"


def training_settings(folder: Path) -> dict[str, Any]:
    """
    The settings an SAE was trained with, as `sparsemax-sae train` takes them.

    Raises:
        ValueError: If the folder does not hold them.
    """
    path = folder / RUNNER_CFG_FILENAME
    if not path.is_file():
        raise ValueError(f"{folder} has no {RUNNER_CFG_FILENAME} with its training settings; give --settings FILE.")
    recorded = json.loads(path.read_text(encoding="utf-8"))
    runner = "vision" if recorded.get("model_class_name") == VISION_MODEL_CLASS else "language_model"
    settings = {"runner": runner, **{key: value for key, value in recorded.items() if key not in _NOT_SETTINGS}}
    settings["sae"] = {key: value for key, value in recorded["sae"].items() if key != "metadata"}
    # A name with the architecture in it would follow the other architectures around.
    settings["logger"] = {
        key: value for key, value in recorded.get("logger", {}).items() if key not in ("run_name", "wandb_id")
    }
    return settings
