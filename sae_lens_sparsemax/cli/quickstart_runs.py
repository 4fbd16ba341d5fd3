"""The first runs, with no network and no data: train on what the package carries, save, load back once, evaluate."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens import SAE

from sae_lens_sparsemax.data.drawings import CAPTION
from sae_lens_sparsemax.data.images import class_names_of, load_image_dataset
from sae_lens_sparsemax.data.labelled_images import random_images
from sae_lens_sparsemax.data.quickstart import QUICKSTART
from sae_lens_sparsemax.display.tables import percent
from sae_lens_sparsemax.evaluation.harness import evaluate_sae, reconstruction_rows, results_table
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction
from sae_lens_sparsemax.evaluation.settings import EvaluationSettings
from sae_lens_sparsemax.evaluation.vision_evaluator import load_evaluator
from sae_lens_sparsemax.files import save_json
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.models.vision_at_hook import open_vision
from sae_lens_sparsemax.training.checkpoints import differing_settings, output_of_run
from sae_lens_sparsemax.training.config_file import load_config

_RECIPES = {"text": "quickstart", "vision": "vision/quickstart_vision"}


class QuickstartResult(NamedTuple):
    """What a quickstart leaves."""

    folder: Path
    """Where the SAE, its log and its pictures are."""
    table: list[tuple[str, Any]]
    """The main measures and their values; ``evaluation.json`` in the folder holds all."""
    seconds: float
    """Wall time of training, saving, loading and evaluating."""


def quickstart(kind: str, output: Path | str | None = None) -> QuickstartResult:
    """Train an SAE as the recipe of a kind says, and evaluate what was saved on what was held out.

    An earlier quickstart in the same folder is replaced; the SAE of any other training there is not.

    Args:
        kind: "text" or "vision".
        output: Folder for all that comes of it; None for that of the recipe.

    Raises:
        ValueError: It holds the SAE of another training.
    """
    started = time.perf_counter()
    loaded = load_config(_RECIPES[kind], {} if output is None else {"output_path": str(output)})
    folder = Path(loaded.config.output_path)
    # The hook and the width are complete only once the model is there.
    if differing := differing_settings(folder, loaded.config, besides=("hook_name", "sae.d_in")):
        raise ValueError(
            f"--output_path must be a folder without another training's SAE, got {str(folder)!r}: {differing[0]} there"
        )
    with output_of_run(loaded.config, overwrite=True):
        loaded.make_runner().run(overwrite=True)
    evaluate, table = _EVALUATION[kind]
    result = evaluate(load_sae(str(folder)))
    save_json(result, folder / "evaluation.json")
    return QuickstartResult(folder, table(result), time.perf_counter() - started)


def _on_held_out_text(sae: SAE[Any]) -> dict[str, Any]:
    return evaluate_sae(sae, EvaluationSettings(dataset_split="validation", batches=15))


def _on_drawings(sae: SAE[Any]) -> dict[str, Any]:
    """Measure an SAE of the embedded vision model on the drawings that neither has seen.

    Returns:
        ``on`` (what it was evaluated on), ``reconstruction`` (``evaluation.ReconstructionMetrics``) and ``model``
        (what ``VisionEvaluator`` gives with the reconstruction in the place of all tokens).
    """
    meta = sae.cfg.metadata
    at_hook = open_vision(sae)
    data = load_image_dataset(QUICKSTART, split="validation")
    names = class_names_of(data, "label")
    images = random_images(data, len(data), at_hook.model.image_processor, 64)  # type: ignore[arg-type]
    evaluator = load_evaluator(at_hook, images, names, [CAPTION])
    reconstruction = evaluate_reconstruction(sae, map(at_hook.activations, evaluator.pixels))
    return {
        "on": {
            "model": meta.model_name,
            "hook_name": meta.hook_name,
            "dataset": "drawings",
            "dataset_split": "validation",
            "n_images": sum(map(len, evaluator.pixels)),
            "n_classes": len(names),
        },
        "reconstruction": dataclasses.asdict(reconstruction),
        "model": evaluator(sae),
    }


def _drawings_table(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """The rows of the table that the command prints: what was measured, and its value."""
    ours, model, on = result["reconstruction"], result["model"], result["on"]
    return [
        *reconstruction_rows(ours),
        (f"zero-shot accuracy, {on['n_classes']} classes", percent(model["zero_shot_accuracy_without_sae"])),
        ("the same with the SAE spliced in", percent(model["zero_shot_accuracy"])),
        ("contrastive loss", model["contrastive_loss_without_sae"]),
        ("the same with the SAE spliced in", model["contrastive_loss"]),
        (f"dead in {ours['n_tokens']:,} tokens", percent(ours["dead_fraction"], 2)),
    ]


_EVALUATION: dict[str, tuple[Callable[[SAE[Any]], dict[str, Any]], Callable[[dict[str, Any]], list[tuple[str, Any]]]]]
_EVALUATION = {"text": (_on_held_out_text, results_table), "vision": (_on_drawings, _drawings_table)}
