"""A first run with no network: train on the embedded model and text, save, load back, evaluate."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens_sparsemax.data.quickstart import QUICKSTART
from sae_lens_sparsemax.evaluation.harness import EvaluationSettings, evaluate_sae
from sae_lens_sparsemax.files import save_json
from sae_lens_sparsemax.models.at_hook import load_sae
from sae_lens_sparsemax.training.config_file import LoadedConfig, config_from_values

# The same as configs/quickstart.yaml, which explains each number; the package works without that folder.
SETTINGS: dict[str, Any] = {
    "model_name": QUICKSTART,
    "model_class_name": "TransformerBridge",
    "hook_name": "blocks.2.hook_out",
    "dataset_path": QUICKSTART,
    "context_size": 128,
    "store_batch_size_prompts": 16,
    "n_batches_in_buffer": 64,
    "training_tokens": 400_000,
    "train_batch_size_tokens": 1024,
    "lr": 2e-3,
    "lr_warm_up_steps": 50,
    "lr_decay_steps": 100,
    "exclude_special_tokens": True,
    "dead_feature_window": 100,
    "output_path": "output/quickstart",
    "sae": {"d_sae": 1024, "target_l0": 16},
}


class QuickstartResult(NamedTuple):
    """What a quickstart leaves."""

    folder: Path
    """Where the SAE, its log and its pictures are."""
    evaluation: dict[str, Any]
    """See ``harness.evaluate_sae``."""
    seconds: float
    """Wall time of training, saving, loading and evaluating."""


def quickstart(output: Path | str) -> QuickstartResult:
    """Train an SAE on the embedded language model into ``output`` and evaluate what was saved on held-out text.

    An earlier quickstart in the same folder is replaced.
    """
    return train_and_evaluate(quickstart_config(output), _on_held_out_text)


def _on_held_out_text(folder: Path) -> dict[str, Any]:
    return evaluate_sae(load_sae(str(folder)), EvaluationSettings(dataset_split="validation", batches=15))


def train_and_evaluate(loaded: LoadedConfig, evaluate: Callable[[Path], dict[str, Any]]) -> QuickstartResult:
    """Train as a configuration says, evaluate what was saved in its folder, and keep the result there."""
    started = time.perf_counter()
    folder = Path(loaded.config.output_path)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    loaded.make_runner().run()
    result = evaluate(folder)
    save_json(result, folder / "evaluation.json")
    return QuickstartResult(folder, result, time.perf_counter() - started)


def quickstart_config(output: Path | str) -> LoadedConfig:
    """The configuration of ``quickstart``, with another output folder."""
    return config_from_values({**SETTINGS, "output_path": str(output)})
