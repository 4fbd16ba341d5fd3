"""Evaluating a saved SAE of any SAELens architecture: SAELens's harness with every metric on, and ours.

Model, hook, data and context are read from the SAE's metadata, and can be replaced.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from sae_lens import SAE
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_sparsemax.data.texts import load_text_dataset, require_one_context
from sae_lens_sparsemax.display.tables import percent
from sae_lens_sparsemax.evaluation.predictions import (
    evaluate_cross_entropy,
    evaluate_cross_entropy_baseline,
    evaluate_divergence,
)
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction
from sae_lens_sparsemax.evaluation.settings import ContextSettings, EvaluationSettings, completed
from sae_lens_sparsemax.models.at_hook import TextAtHook, open_text
from sae_lens_sparsemax.models.encoding import evaluation_mode
from sae_lens_sparsemax.models.language_models import NO_NEXT_TOKENS, load_language_model, predicts_next_tokens

logger = logging.getLogger(__name__)

_FROM_METADATA = (
    "model_name", "model_class_name", "dataset_path", "dataset_split", "dataset_config", "text_column", "context_size",
)  # fmt: skip


def evaluate_sae(
    sae: SAE[Any],
    settings: EvaluationSettings,
    *,
    load: Callable[..., Any] = load_language_model,
    progress: bool = True,
) -> dict[str, Any]:
    """Run every metric on one SAE.

    Args:
        sae: any SAELens SAE.
        settings: what to evaluate on.
        load: what loads the model; see `load_each_once`.
        progress: whether to show progress bars.

    Returns:
        ``on`` (what it was evaluated on), ``saelens`` (the groups of ``run_evals``, over the positions that the SAE
        reads; without those of cross-entropy and KL divergence if the model predicts no next tokens),
        ``reconstruction`` (``evaluation.ReconstructionMetrics``), ``ce_degradation`` (nats; 0 is best; or None) and
        ``features`` (SAELens's metrics per concept). Reconstruction covers the first ``batches`` batches, as SAELens's
        cross-entropy does; SAELens takes the following ones for its sparsity and variance.

    Raises:
        ValueError: metadata that are needed are missing; model, hook, width or data do not fit.
    """
    at_hook, store, on = open_contexts(sae, settings, load=load)
    batches = [store.get_batch_tokens() for _ in range(settings.batches)]
    reconstruction = evaluate_reconstruction(sae, _activations(at_hook, batches), progress=progress)
    predictions = _predictions(at_hook, batches, progress)
    config = get_eval_everything_config(settings.batch_size, settings.batches, settings.batches)
    only_read = _OnlyRead(at_hook, store)
    with evaluation_mode(sae):
        flat = copy.copy(sae)
        flat.cfg = copy.copy(sae.cfg)
        flat.cfg.metadata = SAEMetadata(hook_name=_OnlyRead.hook_name)
        saelens, features = run_evals(
            flat,
            only_read,  # type: ignore[arg-type]
            only_read,  # type: ignore[arg-type]
            ActivationScaler(),
            dataclasses.replace(config, compute_kl=False, compute_ce_loss=False),
            exclude_special_tokens=[_OnlyRead.left_out],
            verbose=progress,
        )
    ce = predictions.get("model_performance_preservation")
    return {
        "on": on,
        "saelens": predictions | saelens,
        "reconstruction": dataclasses.asdict(reconstruction),
        "ce_degradation": ce and ce["ce_loss_without_sae"] - ce["ce_loss_with_sae"],
        "features": features,
    }


class OpenContexts(NamedTuple):
    """A language model and text for an SAE, ready to be read."""

    at_hook: TextAtHook
    """The model at the SAE's hook."""
    store: ActivationsStore
    """The text as contexts of tokens."""
    on: dict[str, Any]
    """Model, hook, data and context, from the settings and the metadata."""


def open_contexts(
    sae: SAE[Any],
    settings: ContextSettings,
    *,
    max_norm: float | None = None,
    load: Callable[..., Any] = load_language_model,
) -> OpenContexts:
    """Load the model and the text that an SAE is to be run on.

    Raises:
        ValueError: metadata that are needed are missing; model, hook, width or data do not fit.
    """
    given = completed(settings, sae, _FROM_METADATA, required=("model_name", "dataset_path", "context_size"))
    at_hook = open_text(
        sae, given.model_name, given.model_class_name, max_norm=max_norm, device=given.device, load=load
    )
    on = {name: getattr(given, name) for name in _FROM_METADATA} | {"hook_name": at_hook.hook_name}
    dataset = load_text_dataset(
        on["dataset_path"], split=on["dataset_split"], config=on["dataset_config"], text_column=on["text_column"]
    )
    assert given.context_size is not None
    store = at_hook.store(dataset, given.context_size, given.batch_size, given.device)
    require_one_context(store, on["dataset_path"])
    return OpenContexts(at_hook, store, on)


def results_table(result: dict[str, Any]) -> list[tuple[str, Any]]:
    """The rows of the table that ``sparsemax-sae evaluate`` prints: what was measured, and its value."""
    ours = result["reconstruction"]
    ce = result["saelens"].get("model_performance_preservation", {})
    kl = result["saelens"].get("model_behavior_preservation", {})
    predictions = (
        [
            ("cross-entropy, original", ce["ce_loss_without_sae"]),
            ("cross-entropy, with SAE", ce["ce_loss_with_sae"]),
            ("cross-entropy, zero ablation", ce["ce_loss_with_ablation"]),
            ("CE loss score (1 is best)", ce["ce_loss_score"]),
            ("KL divergence with SAE", kl["kl_div_with_sae"]),
        ]
        if ce
        else []
    )
    return [
        ("L0, mean", ours["l0"]),
        ("L0, 5th / 50th / 95th percentile", " / ".join(f"{ours[f'l0_p{p}']:.0f}" for p in (5, 50, 95))),
        ("explained variance", ours["explained_variance"]),
        ("cosine similarity", ours["cosine_similarity"]),
        *predictions,
        ("norm out / norm in", result["saelens"]["shrinkage"]["l2_ratio"]),
        (f"dead in {ours['n_tokens']:,} tokens", percent(ours["dead_fraction"], 2)),
    ]


class _OnlyRead:
    """Model and store for `run_evals`: what the SAE reads, heads laid out, with the mask in place of the tokens.

    So SAELens's measures of activations leave out all that the SAE was trained without, at hooks of every kind.
    """

    hook_name, left_out = "activations", 0

    def __init__(self, at_hook: TextAtHook, store: ActivationsStore) -> None:
        self.at_hook, self.store, self.context_size = at_hook, store, store.context_size

    def get_batch_tokens(self, batch_size: int) -> torch.Tensor:
        """Where the next contexts are read, shape (batch, context): `left_out`, or 1."""
        tokens = self.store.get_batch_tokens(batch_size)
        self.acts = self.at_hook.activations(tokens)
        return self.at_hook.is_read(tokens, self.acts).long()

    def run_with_cache(self, *_: Any, **__: Any) -> tuple[None, dict[str, torch.Tensor]]:
        """The activations of these contexts, shape (batch, context, d_in)."""
        return None, {self.hook_name: self.acts}


def _predictions(at_hook: TextAtHook, batches: list[torch.Tensor], progress: bool) -> dict[str, dict[str, float]]:
    """Cross-entropy and KL divergence under SAELens's names; empty if the model predicts no next tokens."""
    if not predicts_next_tokens(at_hook.model):
        logger.warning("Cross-entropy and KL divergence are left out: %s.", NO_NEXT_TOKENS)
        return {}
    baseline = evaluate_cross_entropy_baseline(at_hook, batches, progress=progress)
    ce = evaluate_cross_entropy(at_hook, batches, baseline, progress=progress)
    kl = evaluate_divergence(at_hook, batches, progress=progress)
    return {
        "model_behavior_preservation": {
            "kl_div_score": kl.kl_score,
            "kl_div_with_ablation": kl.kl_zero_ablation,
            "kl_div_with_sae": kl.kl_with_sae,
        },
        "model_performance_preservation": {
            "ce_loss_score": ce.ce_loss_score,
            "ce_loss_with_ablation": ce.ce_zero_ablation,
            "ce_loss_with_sae": ce.ce_with_sae,
            "ce_loss_without_sae": ce.ce_original,
        },
    }


def _activations(at_hook: TextAtHook, batches: list[torch.Tensor]) -> Iterator[Any]:
    for tokens in batches:
        acts = at_hook.activations(tokens)
        yield acts[at_hook.is_read(tokens, acts).to(acts.device)]
