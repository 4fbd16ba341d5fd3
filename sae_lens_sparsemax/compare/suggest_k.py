"""From a trained sparsemax SAE to the TopK and BatchTopK trainings that it is compared with, at its mean L0."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sae_lens.constants import RUNNER_CFG_FILENAME
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_sparsemax.evaluation.suite.evaluate import evaluate_suite
from sae_lens_sparsemax.files import atomic_write_text, read_object
from sae_lens_sparsemax.models.vision_at_hook import VISION_MODEL_CLASS
from sae_lens_sparsemax.settings.checking import build, convert, hints_of
from sae_lens_sparsemax.settings.sentences import must_be
from sae_lens_sparsemax.settings.yaml_files import yaml_text
from sae_lens_sparsemax.training.log import METRICS_FILENAME, read_metrics

MATCHED_ARCHITECTURES = ("topk", "batchtopk")

# Logged steps at the end of the training whose mean stands for the trained SAE.
_LAST_STEPS = 10

# What a run records about itself, and what belongs to one run alone.
_NOT_SETTINGS = {
    "checkpoint_path", "resume_from_checkpoint", "sae_lens_version", "sae_lens_training_version", "tokens_per_buffer",
}  # fmt: skip


def mean_l0(folder: Path, settings: Mapping[str, Any]) -> tuple[float, str]:
    """Mean active concepts per token of a trained SAE, and where it was measured.

    Args:
        folder: Folder of the SAE.
        settings: Settings of its suite, to measure on held-out data; without data, the training log is read.

    Raises:
        ValueError: If nothing was named to measure on and the folder has no training log.
    """
    if settings.get("datasets"):
        name = next(iter(settings["datasets"]))
        groups = evaluate_suite(str(folder), "text", settings, groups=[f"{name}/reconstruction"]).results["groups"]
        return groups[f"{name}/reconstruction"]["l0"]["mean"], f"measured on {name}"
    if settings.get("dataset_path"):
        groups = evaluate_suite(str(folder), "vision", settings, groups=["sparsity"]).results["groups"]
        return groups["sparsity"]["per_token"]["mean"], f"measured on {settings['dataset_path']}"
    lines = [line for line in read_metrics(folder / METRICS_FILENAME) if line.get("metrics/l0") is not None]
    if not lines:
        raise ValueError(
            f"{folder} has no {METRICS_FILENAME} with L0: "
            "give --dataset_path or --datasets.NAME.path to measure on, or --l0"
        )
    last = [line["metrics/l0"] for line in lines[-_LAST_STEPS:]]
    return sum(last) / len(last), f"mean of the last {len(last)} logged training steps"


def training_settings(folder: Path) -> dict[str, Any]:
    """The settings an SAE was trained with, as `sparsemax-sae train` takes them.

    Raises:
        ValueError: If the folder does not hold them.
    """
    path = folder / RUNNER_CFG_FILENAME
    if not path.is_file():
        raise ValueError(f"{folder} has no {RUNNER_CFG_FILENAME} with its training settings; give --settings FILE.")
    recorded = read_object(path)
    if not isinstance(recorded.get("sae"), dict) or not isinstance(recorded.setdefault("logger", {}), dict):
        raise ValueError(
            f"{str(path)!r} must hold the settings of a training with 'sae' and 'logger'; give --settings FILE."
        )
    runner = "vision" if recorded.get("model_class_name") == VISION_MODEL_CLASS else "language_model"
    settings = {"runner": runner, **{key: value for key, value in recorded.items() if key not in _NOT_SETTINGS}}
    settings["sae"] = {key: value for key, value in recorded["sae"].items() if key != "metadata"}
    # A name with the architecture in it would follow the other architectures around.
    settings["logger"] = {
        key: value for key, value in recorded["logger"].items() if key not in ("run_name", "wandb_id")
    }
    return settings


def require_sae_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The SAE of training settings; raises `ValueError` if they have none to match."""
    sae = settings.get("sae")
    if not isinstance(sae, Mapping) or "d_sae" not in sae:
        raise ValueError("the settings have no `sae` with a d_sae, so there is no SAE to match")
    return sae


def matched_settings(settings: Mapping[str, Any], mean_l0: float) -> dict[str, dict[str, Any]]:
    """Training settings for TopK and BatchTopK at the L0 that a sparsemax SAE chose for itself.

    Everything outside `sae` stays as it is, so that only the architecture differs; outputs go to folders of their
    own. Of `sae`, the fields that all architectures share are kept. TopK needs a whole k, the nearest; BatchTopK
    takes the mean as it is.

    Args:
        settings: Settings of the sparsemax training, with its SAE under `sae`.
        mean_l0: Mean active concepts per token of the trained SAE.

    Returns:
        Settings by architecture.

    Raises:
        ValueError: If there is no `sae`, or the L0 is not between 1 and d_sae.
    """
    sae = require_sae_settings(settings)
    if not 1 <= round(mean_l0) <= convert(sae["d_sae"], int, "sae.d_sae"):
        raise must_be("l0", f"between 1 and d_sae = {sae['d_sae']}", mean_l0)
    shared = {f.name for f in fields(TrainingSAEConfig)} - {"metadata"}
    matched = {}
    for architecture in MATCHED_ARCHITECTURES:
        k = matching_k(architecture, mean_l0)
        kept = {key: value for key, value in sae.items() if key in shared}
        sae_settings = {"architecture": architecture, **kept, "k": k}
        # Finds settings that the other architecture does not take before anybody trains with them. The width may be
        # left to the model.
        build(get_sae_training_class(architecture)[1], {"d_in": 1, **kept, "k": k}, "sae")
        matched[architecture] = {**settings, "sae": sae_settings}
        for key in ("output_path", "checkpoint_path"):
            if settings.get(key):
                matched[architecture][key] = f"{settings[key]}_{architecture}"
    return matched


def matching_k(architecture: str, mean_l0: float) -> int | float:
    """The `k` of an architecture at a mean L0: the nearest whole number, where it has to be one."""
    hints = hints_of(get_sae_training_class(architecture)[1]) if architecture in SAE_TRAINING_CLASS_REGISTRY else {}
    return round(mean_l0) if hints.get("k") is int else round(float(mean_l0), 2)


def write_matched_settings(settings: Mapping[str, Any], mean_l0: float, folder: str | Path) -> list[Path]:
    """Write `matched_settings` as `topk.yaml` and `batchtopk.yaml` and return the two paths."""
    paths = []
    for architecture, matched in matched_settings(settings, mean_l0).items():
        path = Path(folder) / f"{architecture}.yaml"
        note = f"# k is the mean L0 ({mean_l0:.4g}) of the sparsemax SAE that this is compared with.\n"
        atomic_write_text(path, note + yaml_text(matched))
        paths.append(path)
    return paths
