"""Evaluating a saved SAE of any SAELens architecture: SAELens's harness with every metric on, and ours.

Model, hook, data and context are read from the SAE's metadata, and can be replaced.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sae_lens import SAE
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_sparsemax.data.loading import refuse_missing_data
from sae_lens_sparsemax.data.texts import load_text_dataset, require_one_context
from sae_lens_sparsemax.display.tables import percent
from sae_lens_sparsemax.evaluation.predictions import (
    PREDICTIONS,
    evaluate_cross_entropy,
    evaluate_cross_entropy_baseline,
    evaluate_divergence,
)
from sae_lens_sparsemax.evaluation.reconstruction import RECONSTRUCTION, ReconstructionAccumulator
from sae_lens_sparsemax.evaluation.settings import ContextSettings, EvaluationSettings, completed
from sae_lens_sparsemax.models.at_hook import TextAtHook, open_text, text_at_hook
from sae_lens_sparsemax.models.encoding import encode_chunks, evaluation_mode, paused, unscaled
from sae_lens_sparsemax.models.language_models import NO_NEXT_TOKENS, load_language_model, predicts_next_tokens

logger = logging.getLogger(__name__)

_FROM_METADATA = (
    "model_name", "model_class_name", "dataset_path", "dataset_split", "dataset_config", "text_column", "context_size",
)  # fmt: skip

# Our names of what SAELens calls something else, in its order.
_OF_SAELENS = {
    "model_behavior_preservation": {
        "kl_div_score": "kl_score", "kl_div_with_ablation": "kl_zero_ablation", "kl_div_with_sae": "kl_with_sae",
    },
    "model_performance_preservation": {
        "ce_loss_score": "ce_loss_score", "ce_loss_with_ablation": "ce_zero_ablation",
        "ce_loss_with_sae": "ce_with_sae", "ce_loss_without_sae": "ce_original",
    },
}  # fmt: skip


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
        ``features`` (SAELens's metrics per concept), all of the first ``batches`` batches.

    Raises:
        ValueError: metadata that are needed are missing; model, hook, width or data do not fit.
    """
    at_hook, store, on = open_contexts(sae, settings, load=load)
    batches = [store.get_batch_tokens() for _ in range(settings.batches)]
    return {"on": on, **evaluate_at_hook(at_hook, batches, progress=progress)}


def evaluate_at_hook(
    at_hook: TextAtHook, batches: list[torch.Tensor], *, per_concept: bool = True, progress: bool = True
) -> dict[str, Any]:
    """What `evaluate_sae` gives but for ``on``, of some contexts at a hook, during training as after it.

    Args:
        at_hook: the model and the SAE.
        batches: token ids, each (batch, context).
        per_concept: whether SAELens measures each concept too.
        progress: whether to show progress bars.
    """
    sae, predictions = at_hook.sae, _predictions(at_hook, batches, progress)
    config = get_eval_everything_config(len(batches[0]), len(batches), len(batches))
    only_read = _OnlyRead(at_hook, batches)
    with evaluation_mode(sae):
        flat = copy.copy(sae)
        flat.cfg = copy.copy(sae.cfg)
        flat.cfg.metadata = SAEMetadata(hook_name=_OnlyRead.hook_name)
        saelens, features = run_evals(
            flat,
            only_read,  # type: ignore[arg-type]
            only_read,  # type: ignore[arg-type]
            ActivationScaler(),
            dataclasses.replace(
                config,
                compute_kl=False,
                compute_ce_loss=False,
                compute_featurewise_density_statistics=per_concept,
                compute_featurewise_weight_based_metrics=per_concept,
            ),
            exclude_special_tokens=[_OnlyRead.left_out],
            verbose=progress,
        )
    reconstruction = only_read.reconstruction.result()
    # The same measure, which SAELens takes as a difference of float32 sums.
    saelens["reconstruction_quality"]["explained_variance"] = reconstruction.explained_variance
    ce = predictions.get("model_performance_preservation")
    return {
        "saelens": predictions | saelens,
        "reconstruction": dataclasses.asdict(reconstruction),
        "ce_degradation": ce and ce["ce_loss_without_sae"] - ce["ce_loss_with_sae"],
        "features": features if per_concept else {},
    }


class TextEvaluator:
    """What SAELens's trainer runs meanwhile: the measures of `evaluate_sae`, on the same contexts each time.

    Args:
        model: the language model.
        dataset: texts, or tokens; the first ones are measured on, and read apart from those for training.
        context_size: tokens per context.
        batch_size: contexts at a time.
        n_batches: batches to measure on.
    """

    def __init__(self, model: Any, dataset: Any, context_size: int, batch_size: int, n_batches: int) -> None:
        self.model, self.dataset = model, dataset
        self.context_size, self.batch_size, self.n_batches = context_size, batch_size, n_batches
        self._batches: list[torch.Tensor] = []

    def __call__(self, sae: SAE[Any], data_provider: Any, activation_scaler: ActivationScaler) -> dict[str, Any]:
        """Measure an SAE as it is.

        Args:
            sae: in training; its metadata say where and what it reads.
            data_provider: a store whose second thread must not use the model meanwhile, if it has one.
            activation_scaler: what the activations are scaled by before they reach the SAE.

        Returns:
            The groups of SAELens, ``reconstruction`` and ``ce_degradation``; nothing that does not apply to the model.
        """
        with paused(data_provider), evaluation_mode(sae):
            at_hook = text_at_hook(self.model, unscaled(sae, activation_scaler))
            if not self._batches:
                store = at_hook.store(self.dataset, self.context_size, self.batch_size, str(at_hook.device))
                self._batches = [store.get_batch_tokens() for _ in range(self.n_batches)]
            found = evaluate_at_hook(at_hook, self._batches, per_concept=False, progress=False)
        more = {key: found[key] for key in ("reconstruction", "ce_degradation") if found[key] is not None}
        return found["saelens"] | more


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
    refuse_missing_data(given.dataset_path, setting="dataset_path")
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
    ours, saelens = result["reconstruction"], result["saelens"]
    measured = [(saelens[group], keys) for group, keys in _OF_SAELENS.items() if group in saelens]
    predictions = {name: theirs[key] for theirs, keys in measured for key, name in keys.items()}
    if predictions:
        predictions["ce_degradation"] = result["ce_degradation"]
    return [
        *reconstruction_rows(ours),
        *[(text, predictions[name]) for name, text in PREDICTIONS.items() if name in predictions],
        ("norm out / norm in", saelens["shrinkage"]["l2_ratio"]),
        (f"dead in {ours['n_tokens']:,} tokens", percent(ours["dead_fraction"], 2)),
    ]


def reconstruction_rows(ours: dict[str, Any]) -> list[tuple[str, Any]]:
    """What such a table begins with, of the measures of `evaluation.ReconstructionMetrics`."""
    return [
        ("L0, mean", ours["l0"]),
        ("L0, 5th / 50th / 95th percentile", " / ".join(f"{ours[f'l0_p{p}']:.0f}" for p in (5, 50, 95))),
        *[(RECONSTRUCTION[name], ours[name]) for name in ("explained_variance", "cosine_similarity")],
    ]


class _OnlyRead:
    """Model and store for `run_evals`: what the SAE reads, heads laid out, with the mask in place of the tokens.

    So SAELens's measures of activations leave out all that the SAE was trained without, at hooks of every kind.
    """

    hook_name, left_out = "activations", 0

    def __init__(self, at_hook: TextAtHook, batches: list[torch.Tensor]) -> None:
        self.at_hook, self.batches, self.context_size = at_hook, iter(batches), batches[0].shape[1]
        self.reconstruction = ReconstructionAccumulator(at_hook.sae.cfg.d_sae)

    def get_batch_tokens(self, _: int) -> torch.Tensor:
        """Where the next contexts are read, shape (batch, context): `left_out`, or 1."""
        tokens = next(self.batches)
        self.acts = self.at_hook.activations(tokens)
        is_read = self.at_hook.is_read(tokens, self.acts)
        for chunk in encode_chunks(self.at_hook.sae, [self.acts[is_read.to(self.acts.device)]]):
            self.reconstruction.add(chunk)
        return is_read.long()

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
    found = dataclasses.asdict(kl) | dataclasses.asdict(ce)
    return {group: {key: found[name] for key, name in keys.items()} for group, keys in _OF_SAELENS.items()}
