"""
The text suite: reconstruction, sparsity and predictions of a language model with an SAE spliced in.

Tables 1 and 2 of the sparsemax paper, with every variant of their measures under its own name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

from sae_lens import SAE

from sae_lens_sparsemax.evaluation.cross_entropy import evaluate_cross_entropy, evaluate_cross_entropy_baseline
from sae_lens_sparsemax.evaluation.divergence import evaluate_divergence
from sae_lens_sparsemax.evaluation.reconstruction import ReconstructionAccumulator, evaluate_nmse_batchtopk
from sae_lens_sparsemax.evaluation.sparsity import l0_distribution
from sae_lens_sparsemax.evaluation.suite.groups import MetricGroup
from sae_lens_sparsemax.evaluation.suite.text_data import TextData, TextModel, TokenSet
from sae_lens_sparsemax.files import file_facts
from sae_lens_sparsemax.models.encoding import encode_chunks
from sae_lens_sparsemax.settings.values import build


@dataclass(frozen=True)
class TextSuiteSettings:
    """What the text suite measures on; None takes what the SAE's metadata say."""

    model: str | None = None
    """Model name or local folder."""
    model_class: str | None = None
    """HookedTransformer, HookedMamba, AutoModelForCausalLM or TransformerBridge."""
    hook_name: str | None = None
    """Where the SAE reads and is spliced in."""
    context_size: int | None = None
    """Tokens per context."""
    data: dict[str, Any] = field(default_factory=dict)
    """Sets of text by name, each with the keys of `TextData`; by default the held-out part of the training data."""
    held_out_fraction: float | None = None
    """Share of the documents that `held_out: true` takes: that of the training."""
    n_tokens: int = 100_000
    """Tokens of each set for reconstruction and sparsity."""
    n_prediction_tokens: int = 20_000
    """Tokens of each set for cross-entropy and KL divergence, which run the model six times."""
    max_norm: float | None = None
    """Leave out activations of a larger norm; by default those that the SAE's training left out."""
    batch_size: int = 16
    """Contexts at a time."""
    device: str = "cpu"
    """Where model and SAE run."""


def text_settings(values: Mapping[str, Any], sae: SAE[Any]) -> TextSuiteSettings:
    """
    The settings of a run on one SAE, completed from its metadata.

    Raises:
        ValueError: A key or value is wrong, or the metadata lack something that was not given either.
    """
    given = build(TextSuiteSettings, values)
    data = {name: build(TextData, value, f"data.{name}") for name, value in given.data.items()}
    meta = sae.cfg.metadata
    fraction = given.held_out_fraction if given.held_out_fraction is not None else meta.held_out_fraction
    if not data:
        if not fraction or not meta.dataset_path:
            raise ValueError(
                "The SAE's metadata name no text that was held out of training; give --data.NAME.path FILE, or train "
                "with 'held_out_fraction'."
            )
        split, config, column = meta.dataset_split or "train", meta.dataset_config, meta.text_column or "text"
        data = {"held_out": TextData(meta.dataset_path, split, config, column, held_out=True)}
    if any(each.held_out for each in data.values()) and not fraction:
        raise ValueError(
            "'held_out' needs the fraction that training left out, which the SAE's metadata do not have; give "
            "--held_out_fraction, or a data set that was not trained on."
        )
    settings = dataclasses.replace(
        given,
        model=given.model or meta.model_name,
        model_class=given.model_class or meta.model_class_name or "HookedTransformer",
        hook_name=given.hook_name or meta.hook_name,
        context_size=given.context_size or meta.context_size,
        held_out_fraction=fraction or 0.0,
        max_norm=given.max_norm or meta.max_norm,
        data=data,
    )
    for key in ("model", "hook_name", "context_size"):
        if not getattr(settings, key):
            raise ValueError(f"The SAE's metadata have no {key!r}; give --{key}.")
    return settings


def text_groups(sae: SAE[Any], settings: TextSuiteSettings, progress: bool = True) -> list[MetricGroup]:
    """Two groups for each set of text: `<set>/reconstruction` and `<set>/predictions`."""
    assert settings.model and settings.model_class and settings.hook_name and settings.context_size
    names = (settings.model, settings.model_class, settings.hook_name)
    sizes = (settings.context_size, settings.batch_size)

    @cache
    def model() -> TextModel:
        return TextModel(sae, *names, *sizes, settings.device)

    @cache
    def tokens(name: str) -> TokenSet:
        data: TextData = settings.data[name]
        n_tokens = max(settings.n_tokens, settings.n_prediction_tokens)
        return model().text(data, settings.held_out_fraction or 0.0, n_tokens)

    max_norm = settings.max_norm or math.inf
    shared = {key: getattr(settings, key) for key in ("model", "model_class", "hook_name", "context_size", "max_norm")}
    groups = []
    for name, data in settings.data.items():
        on = shared | {"data": asdict(data), "files": file_facts([data.path, settings.model])}
        on |= {"held_out_fraction": settings.held_out_fraction} if data.held_out else {}
        groups += [
            MetricGroup(
                f"{name}/reconstruction",
                on | {"n_tokens": settings.n_tokens},
                partial(_reconstruction, sae, tokens, name, settings.n_tokens, max_norm, progress),
            ),
            MetricGroup(
                f"{name}/predictions",
                on | {"n_tokens": settings.n_prediction_tokens},
                partial(_predictions, sae, tokens, name, settings.n_prediction_tokens, max_norm, progress),
            ),
        ]
    return groups


def _reconstruction(
    sae: SAE[Any], tokens: Callable[[str], TokenSet], name: str, n_tokens: int, max_norm: float, progress: bool
) -> dict[str, Any]:
    text = tokens(name).first(n_tokens)
    accumulator = ReconstructionAccumulator(sae.cfg.d_sae)
    for chunk in encode_chunks(sae, text.activations(max_norm, "Reconstruction" if progress else None)):
        accumulator.add(chunk)
    standardised = evaluate_nmse_batchtopk(sae, text.activations(max_norm), progress=progress)
    return {
        "reconstruction": accumulator.result(),
        "nmse_batchtopk": standardised,
        "l0": l0_distribution(accumulator.l0),
    }


def _predictions(
    sae: SAE[Any], tokens: Callable[[str], TokenSet], name: str, n_tokens: int, max_norm: float, progress: bool
) -> dict[str, Any]:
    text = tokens(name).first(n_tokens)
    model, ignored, batches = text.model.model, text.model.ignore_tokens, text.batches()
    hook_name = text.model.hook_name
    baseline = evaluate_cross_entropy_baseline(model, hook_name, batches, ignore_tokens=ignored, progress=progress)
    return {
        "cross_entropy": evaluate_cross_entropy(
            model, sae, batches, baseline, ignore_tokens=ignored, max_norm=max_norm, progress=progress
        ),
        "divergence": evaluate_divergence(
            model, sae, batches, ignore_tokens=ignored, max_norm=max_norm, progress=progress
        ),
    }
