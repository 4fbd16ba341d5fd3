"""Evaluating a saved SAE of any SAELens architecture: SAELens's harness with every metric on, and ours.

Model, hook, data and context are read from the SAE's metadata, and can be replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import HfHubHTTPError
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_sparsemax.data.texts import load_text_dataset, require_one_context
from sae_lens_sparsemax.display.tables import percent
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction
from sae_lens_sparsemax.models.language_models import (
    check_width,
    excluded_token_ids,
    hook_width,
    load_language_model,
    resolve_hook_name,
)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate on; None takes what the SAE's metadata say."""

    model: str | None = None
    """Model name or local folder."""
    model_class: str | None = None
    """See ``training.models.load_language_model``."""
    dataset: str | None = None
    """See ``training.text_data.load_text_dataset``."""
    dataset_split: str | None = None
    """Split of the data set."""
    dataset_config: str | None = None
    """Configuration of the data set."""
    text_column: str | None = None
    """Column with the text."""
    context_size: int | None = None
    """Tokens per context."""
    batches: int = 10
    """Batches for each group of metrics."""
    batch_size: int = 16
    """Contexts per batch."""
    device: str = "cpu"
    """Where model and SAE run."""


def load_sae(source: str, device: str = "cpu") -> SAE[Any]:
    """Load an SAE from a folder (inference SAE or training checkpoint), or from ``release_or_repo:id``.

    Raises:
        ValueError: there is no SAE, or its architecture is not registered.
    """
    folder = Path(source).expanduser()
    try:
        if folder.is_dir():
            if not (folder / SAE_CFG_FILENAME).is_file():
                raise ValueError(f"The folder {source!r} holds no SAE: it has no {SAE_CFG_FILENAME}.")
            return SAE.load_from_disk(folder, device=device)
        release, colon, sae_id = source.partition(":")
        if not colon:
            raise ValueError(f"There is no folder {source!r}; an SAE on the hub is named user/repository:id.")
        return SAE.from_pretrained(release, sae_id, device=device)
    except KeyError as error:
        raise ValueError(f"The SAE {source!r} has the architecture {error}, which is not registered.") from error
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"The SAE {source!r} could not be loaded: {' '.join(str(error).split())}") from error


def evaluate_sae(sae: SAE[Any], settings: EvaluationSettings, *, progress: bool = True) -> dict[str, Any]:
    """Run every metric on one SAE.

    Returns:
        ``on`` (what it was evaluated on), ``saelens`` (the groups of ``run_evals``), ``reconstruction``
        (``evaluation.ReconstructionMetrics``), ``ce_degradation`` (nats; 0 is best) and ``features``
        (SAELens's metrics per concept). Reconstruction covers the first ``batches`` batches, as SAELens's
        cross-entropy does; SAELens takes the following ones for its sparsity and variance.

    Raises:
        ValueError: metadata that are needed are missing; model, hook, width or data do not fit.
    """
    model, store, excluded, on = open_text(sae, settings)
    reconstruction = evaluate_reconstruction(sae, _activations(store, settings.batches), progress=progress)
    store.iterable_sequences = store._iterate_tokenized_sequences()
    saelens, features = run_evals(
        sae,
        store,
        model,
        ActivationScaler(),
        get_eval_everything_config(settings.batch_size, settings.batches, settings.batches),
        exclude_special_tokens=excluded or False,
        verbose=progress,
    )
    ce = saelens["model_performance_preservation"]
    return {
        "on": on,
        "saelens": saelens,
        "reconstruction": dataclasses.asdict(reconstruction),
        "ce_degradation": ce["ce_loss_without_sae"] - ce["ce_loss_with_sae"],
        "features": features,
    }


class OpenText(NamedTuple):
    """A language model and text for an SAE, ready to be read."""

    model: Any
    """The model, with hooks."""
    store: ActivationsStore
    """The text as tokens and activations; `exclude_special_tokens` is set as in training."""
    excluded: list[int]
    """Token ids whose positions are left out."""
    on: dict[str, Any]
    """Model, hook, data and context, from the settings and the metadata."""


def open_text(sae: SAE[Any], settings: EvaluationSettings) -> OpenText:
    """Load the model and the text that an SAE is to be run on.

    Raises:
        ValueError: metadata that are needed are missing; model, hook, width or data do not fit.
    """
    meta = sae.cfg.metadata
    on = _resolve(sae, settings)
    model: Any = load_language_model(
        on["model_class"], on["model"], on["hook_name"], settings.device, meta.model_from_pretrained_kwargs
    )
    meta.hook_name = on["hook_name"] = resolve_hook_name(model, on["hook_name"])
    check_width(sae.cfg.d_in, hook_width(model, meta.hook_name, meta.hook_head_index), meta.hook_name)
    dataset = load_text_dataset(
        on["dataset"], split=on["dataset_split"], config=on["dataset_config"], text_column=on["text_column"]
    )
    if meta.prepend_bos is None:
        meta.prepend_bos = True  # what SAELens trains with unless told otherwise
    store = ActivationsStore.from_sae(
        model,
        sae,
        dataset=dataset,
        context_size=on["context_size"],
        store_batch_size_prompts=settings.batch_size,
        device=settings.device,
        disable_concat_sequences=bool(meta.disable_concat_sequences),
        sequence_separator_token=meta.get("sequence_separator_token", "bos"),
    )
    require_one_context(store, on["dataset"])
    excluded = excluded_token_ids(meta.exclude_special_tokens, model)
    if excluded:
        store.exclude_special_tokens = torch.tensor(excluded, device=settings.device)
    return OpenText(model, store, excluded, on)


def results_table(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """The rows of the table that ``sparsemax-sae evaluate`` prints: what was measured, and its value."""
    ours = result["reconstruction"]
    ce = result["saelens"]["model_performance_preservation"]
    kl = result["saelens"]["model_behavior_preservation"]
    return [
        ("L0, mean", ours["l0"]),
        ("L0, 5th / 50th / 95th percentile", " / ".join(f"{ours[f'l0_p{p}']:.0f}" for p in (5, 50, 95))),
        ("explained variance", ours["explained_variance"]),
        ("cosine similarity", ours["cosine_similarity"]),
        ("cross-entropy, original", ce["ce_loss_without_sae"]),
        ("cross-entropy, with SAE", ce["ce_loss_with_sae"]),
        ("cross-entropy, zero ablation", ce["ce_loss_with_ablation"]),
        ("CE loss score (1 is best)", ce["ce_loss_score"]),
        ("KL divergence with SAE", kl["kl_div_with_sae"]),
        ("norm out / norm in", result["saelens"]["shrinkage"]["l2_ratio"]),
        (f"dead in {ours['n_tokens']:,} tokens", percent(ours["dead_fraction"], 2)),
    ]


def _resolve(sae: SAE[Any], settings: EvaluationSettings) -> dict[str, Any]:
    """Settings completed from the metadata; a ValueError names the first that neither gives."""
    meta = sae.cfg.metadata
    on = {
        "model": settings.model or meta.model_name,
        "model_class": settings.model_class or meta.model_class_name or "HookedTransformer",
        "hook_name": meta.hook_name,
        "dataset": settings.dataset or meta.dataset_path,
        # Another data set has its own splits and columns, so those of the training data say nothing.
        "dataset_split": settings.dataset_split or (not settings.dataset and meta.dataset_split) or "train",
        "dataset_config": settings.dataset_config or (None if settings.dataset else meta.dataset_config),
        "text_column": settings.text_column or (not settings.dataset and meta.text_column) or "text",
        "context_size": settings.context_size or meta.context_size,
    }
    for key in ("model", "hook_name", "dataset", "context_size"):
        if not on[key]:
            remedy = "" if key == "hook_name" else f"; give --{key.replace('_', '-')}"
            raise ValueError(f"The SAE's metadata have no {key!r}{remedy}.")
    return on


def _activations(store: ActivationsStore, n_batches: int) -> Iterator[torch.Tensor]:
    for _ in range(n_batches):
        yield store.get_filtered_llm_batch()
