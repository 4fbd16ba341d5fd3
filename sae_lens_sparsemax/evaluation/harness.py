"""Evaluating a saved SAE of any SAELens architecture: SAELens's harness with every metric on, and ours.

Model, hook, data and context are read from the SAE's metadata, and can be replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sae_lens import SAE
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_sparsemax.data.texts import load_text_dataset, require_one_context
from sae_lens_sparsemax.display.tables import percent
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction
from sae_lens_sparsemax.evaluation.settings import ContextSettings, EvaluationSettings, completed
from sae_lens_sparsemax.models.at_hook import TextAtHook, open_text
from sae_lens_sparsemax.models.language_models import load_language_model

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
        ``on`` (what it was evaluated on), ``saelens`` (the groups of ``run_evals``), ``reconstruction``
        (``evaluation.ReconstructionMetrics``), ``ce_degradation`` (nats; 0 is best) and ``features``
        (SAELens's metrics per concept). Reconstruction covers the first ``batches`` batches, as SAELens's
        cross-entropy does; SAELens takes the following ones for its sparsity and variance.

    Raises:
        ValueError: metadata that are needed are missing; model, hook, width or data do not fit.
    """
    at_hook, store, on = open_contexts(sae, settings, load=load)
    batches = _activations(at_hook, store, settings.batches)
    reconstruction = evaluate_reconstruction(sae, batches, progress=progress)
    store.iterable_sequences = store._iterate_tokenized_sequences()
    saelens, features = run_evals(
        sae,
        store,
        at_hook.model,
        ActivationScaler(),
        get_eval_everything_config(settings.batch_size, settings.batches, settings.batches),
        exclude_special_tokens=at_hook.excluded or False,
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


def _activations(at_hook: TextAtHook, store: ActivationsStore, n_batches: int) -> Iterator[Any]:
    for _ in range(n_batches):
        tokens = store.get_batch_tokens()
        acts = at_hook.activations(tokens)
        yield acts[at_hook.is_read(tokens, acts).to(acts.device)]
