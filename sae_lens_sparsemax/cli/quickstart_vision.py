"""A first run on images with no network and no data: train on the embedded CLIP and drawings, load back, evaluate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sae_lens_sparsemax.cli.quickstart_text import QuickstartResult, train_and_evaluate
from sae_lens_sparsemax.data.drawings import CAPTION
from sae_lens_sparsemax.data.images import class_names_of, load_image_dataset
from sae_lens_sparsemax.data.quickstart import QUICKSTART
from sae_lens_sparsemax.display.tables import percent
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction
from sae_lens_sparsemax.evaluation.vision_evaluator import load_evaluator
from sae_lens_sparsemax.models.at_hook import load_sae
from sae_lens_sparsemax.models.vision_at_hook import open_vision
from sae_lens_sparsemax.training.config_file import LoadedConfig, config_from_values

# The same as configs/vision/quickstart_vision.yaml, which explains each number; the package works without that folder.
SETTINGS: dict[str, Any] = {
    "runner": "vision",
    "model_name": QUICKSTART,
    "hook_name": "blocks.-2.hook_resid_post",
    "dataset_path": QUICKSTART,
    "store_batch_size_images": 128,
    "n_decode_workers": 1,
    "training_tokens": 400_000,
    "train_batch_size_tokens": 1024,
    "lr": 2e-3,
    "lr_warm_up_steps": 50,
    "lr_decay_steps": 100,
    "dead_feature_window": 100,
    "output_path": "output/quickstart_vision",
    "sae": {"d_sae": 768, "target_l0": 12},
}


def quickstart(output: Path | str) -> QuickstartResult:
    """Train an SAE on the embedded vision model into ``output`` and evaluate what was saved on held-out drawings.

    An earlier quickstart in the same folder is replaced.
    """
    return train_and_evaluate(quickstart_config(output), evaluate_on_drawings)


def quickstart_config(output: Path | str) -> LoadedConfig:
    """The configuration of ``quickstart``, with another output folder."""
    return config_from_values({**SETTINGS, "output_path": str(output)})


def evaluate_on_drawings(folder: Path) -> dict[str, Any]:
    """Measure a saved SAE of the embedded vision model on the drawings that neither has seen.

    Returns:
        ``on`` (what it was evaluated on), ``reconstruction`` (``evaluation.ReconstructionMetrics``) and ``model``
        (what ``VisionEvaluator`` gives with the reconstruction in the place of all tokens).
    """
    sae = load_sae(str(folder))
    meta = sae.cfg.metadata
    at_hook = open_vision(sae)
    data = load_image_dataset(QUICKSTART, split="validation")
    names = class_names_of(data, "label")
    evaluator = load_evaluator(
        at_hook.model,
        data,
        at_hook.hook_name,
        at_hook.tokens,
        n_images=len(data),  # type: ignore[arg-type]
        image_column="image",
        label_column="label",
        class_names=names,
        templates=[CAPTION],
        batch_size=64,
    )
    reconstruction = evaluate_reconstruction(sae, map(at_hook.activations, evaluator.pixels), progress=False)
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


def results_table(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """The rows of the table that the command prints: what was measured, and its value."""
    ours, model, on = result["reconstruction"], result["model"], result["on"]
    return [
        ("L0, mean", ours["l0"]),
        ("L0, 5th / 50th / 95th percentile", " / ".join(f"{ours[f'l0_p{p}']:.0f}" for p in (5, 50, 95))),
        ("explained variance", ours["explained_variance"]),
        ("cosine similarity", ours["cosine_similarity"]),
        (f"zero-shot accuracy, {on['n_classes']} classes", percent(model["zero_shot_accuracy_without_sae"])),
        ("the same with the SAE spliced in", percent(model["zero_shot_accuracy"])),
        ("contrastive loss", model["contrastive_loss_without_sae"]),
        ("the same with the SAE spliced in", model["contrastive_loss"]),
        (f"dead in {ours['n_tokens']:,} tokens", percent(ours["dead_fraction"], 2)),
    ]
