"""The text suite: reconstruction, sparsity and predictions of a language model with an SAE spliced in.

Tables 1 and 2 of the sparsemax paper, with every variant of their measures under its own name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from itertools import islice
from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.texts import TextData, load_text_dataset, part_of_dataset, require_one_context
from sae_lens_sparsemax.evaluation.predictions import (
    evaluate_cross_entropy,
    evaluate_cross_entropy_baseline,
    evaluate_divergence,
)
from sae_lens_sparsemax.evaluation.reconstruction import ReconstructionAccumulator, evaluate_nmse_batchtopk
from sae_lens_sparsemax.evaluation.sparsity import l0_distribution
from sae_lens_sparsemax.evaluation.suite.groups import MetricGroup
from sae_lens_sparsemax.files import file_facts
from sae_lens_sparsemax.models.at_hook import TextAtHook, open_text
from sae_lens_sparsemax.models.encoding import encode_chunks
from sae_lens_sparsemax.models.language_models import load_language_model
from sae_lens_sparsemax.settings.checking import build


@dataclass(frozen=True)
class TextSuiteSettings:
    """What the text suite measures on; None takes what the SAE's metadata say."""

    model_name: str | None = None
    """Model name or local folder."""
    model_class_name: str | None = None
    """HookedTransformer, HookedMamba, AutoModelForCausalLM or TransformerBridge."""
    hook_name: str | None = None
    """Where the SAE reads and is spliced in."""
    context_size: int | None = None
    """Tokens per context."""
    datasets: dict[str, TextData] = field(default_factory=dict)
    """Sets of text by name; by default the held-out part of the training data."""
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
    """The settings of a run on one SAE, completed from its metadata.

    Raises:
        ValueError: A key or value is wrong, or the metadata lack something that was not given either.
    """
    given = build(TextSuiteSettings, values)
    datasets, meta = given.datasets, sae.cfg.metadata
    fraction = given.held_out_fraction if given.held_out_fraction is not None else meta.held_out_fraction
    if not datasets:
        if not fraction or not meta.dataset_path:
            raise ValueError(
                "The SAE's metadata name no text that was held out of training; give --datasets.NAME.path FILE, or "
                "train with 'held_out_fraction'."
            )
        split, config, column = meta.dataset_split or "train", meta.dataset_config, meta.text_column or "text"
        datasets = {"held_out": TextData(meta.dataset_path, split, config, column, held_out=True)}
    if any(each.held_out for each in datasets.values()) and not fraction:
        raise ValueError(
            "'held_out' needs the fraction that training left out, which the SAE's metadata do not have; give "
            "--held_out_fraction, or a data set that was not trained on."
        )
    settings = dataclasses.replace(
        given,
        model_name=given.model_name or meta.model_name,
        model_class_name=given.model_class_name or meta.model_class_name or "HookedTransformer",
        hook_name=given.hook_name or meta.hook_name,
        context_size=given.context_size or meta.context_size,
        held_out_fraction=fraction or 0.0,
        max_norm=given.max_norm or meta.max_norm,
        datasets=datasets,
    )
    for key in ("model_name", "hook_name", "context_size"):
        if not getattr(settings, key):
            raise ValueError(f"The SAE's metadata have no {key!r}; give --{key}.")
    return settings


def text_groups(
    sae: SAE[Any],
    settings: TextSuiteSettings,
    progress: bool = True,
    load: Callable[..., Any] = load_language_model,
) -> list[MetricGroup]:
    """Two groups for each set of text: `<set>/reconstruction` and `<set>/predictions`."""

    @cache
    def at_hook() -> TextAtHook:
        return open_text(
            sae,
            settings.model_name,
            settings.model_class_name,
            hook_name=settings.hook_name,
            max_norm=settings.max_norm,
            device=settings.device,
            load=load,
        )

    @cache
    def tokens(name: str) -> TokenSet:
        return read_tokens(at_hook(), settings.datasets[name], settings)

    def measured(measure: Callable[[TokenSet, bool], dict[str, Any]], name: str, n_tokens: int) -> dict[str, Any]:
        return measure(tokens(name).first(n_tokens), progress)

    # Named as when the first results were kept, so that those are still known again.
    shared = {"model": settings.model_name, "model_class": settings.model_class_name}
    shared |= {key: getattr(settings, key) for key in ("hook_name", "context_size", "max_norm")}
    groups = []
    for name, data in settings.datasets.items():
        on = shared | {"data": asdict(data), "files": file_facts([data.path, settings.model_name])}
        on |= {"held_out_fraction": settings.held_out_fraction} if data.held_out else {}
        for group, measure, n_tokens in (
            ("reconstruction", _reconstruction, settings.n_tokens),
            ("predictions", _predictions, settings.n_prediction_tokens),
        ):
            compute = partial(measured, measure, name, n_tokens)
            groups.append(MetricGroup(f"{name}/{group}", on | {"n_tokens": n_tokens}, compute))
    return groups


class TokenSet:
    """Contexts of one set of text, and their activations, computed each time they are asked for."""

    def __init__(self, at_hook: TextAtHook, tokens: torch.Tensor, batch_size: int) -> None:
        self.at_hook, self.tokens, self.batch_size = at_hook, tokens, batch_size

    def first(self, n_tokens: int) -> TokenSet:
        """The first `n_tokens` tokens, rounded up to whole contexts."""
        return TokenSet(self.at_hook, self.tokens[: -(-n_tokens // self.tokens.shape[1])], self.batch_size)

    def batches(self) -> list[torch.Tensor]:
        """Token ids of shape (batch, context)."""
        return list(self.tokens.to(self.at_hook.device).split(self.batch_size))

    def activations(self, description: str | None = None) -> Iterator[torch.Tensor]:
        """Activations of shape (tokens, d_in) at the positions that the SAE reads.

        With a description, a progress bar is shown.
        """
        for tokens in tqdm(self.batches(), desc=description, disable=description is None, leave=False):
            acts = self.at_hook.activations(tokens)
            yield acts[self.at_hook.is_read(tokens, acts)]


def read_tokens(at_hook: TextAtHook, data: TextData, settings: TextSuiteSettings) -> TokenSet:
    """The first tokens of a set of text, as many as the settings ask for, or all that there are."""
    dataset = load_text_dataset(data.path, split=data.split, config=data.config, text_column=data.text_column)
    if data.held_out:
        dataset = part_of_dataset(dataset, "held_out", settings.held_out_fraction or 0.0, data.path)
    assert settings.context_size is not None
    store = at_hook.store(dataset, settings.context_size, settings.batch_size, settings.device)
    require_one_context(store, data.path)
    n_contexts = -(-max(settings.n_tokens, settings.n_prediction_tokens) // settings.context_size)
    contexts = [tokens.cpu() for tokens in islice(store.iterable_sequences, n_contexts)]
    return TokenSet(at_hook, torch.stack(contexts), settings.batch_size)


def _reconstruction(text: TokenSet, progress: bool) -> dict[str, Any]:
    sae = text.at_hook.sae
    accumulator = ReconstructionAccumulator(sae.cfg.d_sae)
    for chunk in encode_chunks(sae, text.activations("Reconstruction" if progress else None)):
        accumulator.add(chunk)
    return {
        "reconstruction": accumulator.result(),
        "nmse_batchtopk": evaluate_nmse_batchtopk(sae, text.activations(), progress=progress),
        "l0": l0_distribution(accumulator.l0),
    }


def _predictions(text: TokenSet, progress: bool) -> dict[str, Any]:
    at_hook, batches = text.at_hook, text.batches()
    baseline = evaluate_cross_entropy_baseline(at_hook, batches, progress=progress)
    return {
        "cross_entropy": evaluate_cross_entropy(at_hook, batches, baseline, progress=progress),
        "divergence": evaluate_divergence(at_hook, batches, progress=progress),
    }
