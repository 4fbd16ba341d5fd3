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
from sae_lens_sparsemax.models.at_hook import TextAtHook, open_text
from sae_lens_sparsemax.models.encoding import hook_name_of
from sae_lens_sparsemax.models.language_models import load_language_model


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate on; None takes what the SAE's metadata say."""

    model_name: str | None = None
    """Model name or local folder."""
    model_class_name: str | None = None
    """HookedTransformer, HookedMamba, AutoModelForCausalLM or TransformerBridge."""
    dataset_path: str | None = None
    """Hub id, local file or folder; without one the training's: name a held-out one for figures to report."""
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
    settings: EvaluationSettings,
    *,
    max_norm: float | None = None,
    load: Callable[..., Any] = load_language_model,
) -> OpenContexts:
    """Load the model and the text that an SAE is to be run on.

    Raises:
        ValueError: metadata that are needed are missing; model, hook, width or data do not fit.
    """
    on = _resolve(sae, settings)
    at_hook = open_text(
        sae, on["model_name"], on["model_class_name"], max_norm=max_norm, device=settings.device, load=load
    )
    on["hook_name"] = at_hook.hook_name
    dataset = load_text_dataset(
        on["dataset_path"], split=on["dataset_split"], config=on["dataset_config"], text_column=on["text_column"]
    )
    store = at_hook.store(dataset, on["context_size"], settings.batch_size, settings.device)
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


def _resolve(sae: SAE[Any], settings: EvaluationSettings) -> dict[str, Any]:
    """Settings completed from the metadata; a ValueError names the first that neither gives."""
    meta, given = sae.cfg.metadata, settings.dataset_path
    on = {
        "model_name": settings.model_name or meta.model_name,
        "model_class_name": settings.model_class_name or meta.model_class_name or "HookedTransformer",
        "hook_name": hook_name_of(sae),
        "dataset_path": given or meta.dataset_path,
        # Another data set has its own splits and columns, so those of the training data say nothing.
        "dataset_split": settings.dataset_split or (not given and meta.dataset_split) or "train",
        "dataset_config": settings.dataset_config or (None if given else meta.dataset_config),
        "text_column": settings.text_column or (not given and meta.text_column) or "text",
        "context_size": settings.context_size or meta.context_size,
    }
    for key in ("model_name", "dataset_path", "context_size"):
        if not on[key]:
            raise ValueError(f"The SAE's metadata have no {key!r}; give --{key}.")
    return on


def _activations(at_hook: TextAtHook, store: ActivationsStore, n_batches: int) -> Iterator[Any]:
    for _ in range(n_batches):
        tokens = store.get_batch_tokens()
        acts = at_hook.activations(tokens)
        yield acts[at_hook.is_read(tokens, acts).to(acts.device)]
