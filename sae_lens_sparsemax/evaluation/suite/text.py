"""The text suite: reconstruction, sparsity and predictions of a language model with an SAE spliced in, and probes.

Tables 1 and 2 of the sparsemax paper, with every variant of their measures under its own name, and k-sparse probing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from itertools import islice
from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.labelled_texts import LabelledText
from sae_lens_sparsemax.data.texts import TextData, load_text_dataset, part_of_dataset, require_one_context
from sae_lens_sparsemax.evaluation.predictions import (
    CrossEntropyMetrics,
    DivergenceMetrics,
    evaluate_cross_entropy,
    evaluate_cross_entropy_baseline,
    evaluate_divergence,
)
from sae_lens_sparsemax.evaluation.reconstruction import (
    ReconstructionAccumulator,
    ReconstructionMetrics,
    evaluate_nmse_batchtopk,
)
from sae_lens_sparsemax.evaluation.settings import TextSuiteSettings
from sae_lens_sparsemax.evaluation.sparsity import L0Distribution, l0_distribution
from sae_lens_sparsemax.evaluation.suite.groups import MetricGroup, NotMeasured
from sae_lens_sparsemax.evaluation.suite.probing import Passages, labelled_tasks, passage_tasks, probed, read_passages
from sae_lens_sparsemax.files import file_facts
from sae_lens_sparsemax.models.at_hook import TextAtHook, open_text
from sae_lens_sparsemax.models.encoding import encode_chunks
from sae_lens_sparsemax.models.language_models import NO_NEXT_TOKENS, load_language_model, predicts_next_tokens


def text_results(settings: TextSuiteSettings) -> dict[str, dict[str, Any]]:
    """What the result of each group that `text_groups` makes holds, by name: dataclasses and numbers, as types."""
    results: dict[str, dict[str, Any]] = {
        "reconstruction": {"reconstruction": ReconstructionMetrics, "nmse_batchtopk": float, "l0": L0Distribution},
        "predictions": {"cross_entropy": CrossEntropyMetrics, "divergence": DivergenceMetrics},
        "probing": {},  # lists alone, of the tasks that there are texts for
    }
    of_sets = {f"{name}/{group}": result for name in settings.datasets for group, result in results.items()}
    return of_sets | {f"{name}/probing": results["probing"] for name in settings.probing}


def text_groups(
    sae: SAE[Any],
    settings: TextSuiteSettings,
    progress: bool = True,
    load: Callable[..., Any] = load_language_model,
) -> list[MetricGroup]:
    """`<set>/reconstruction`, `/predictions` and `/probing` of each set of text; `/probing` of each with classes."""

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

    @cache
    def passages(name: str) -> Passages:
        text = tokens(name).first(settings.n_tokens)
        return read_passages(at_hook(), text.tokens, settings.probing_pooling, settings.batch_size, progress)

    def passages_probed(name: str, others: list[str]) -> dict[str, Any]:
        return probed(passage_tasks(name, others, passages), settings.probing_ks)

    def classes_probed(data: LabelledText) -> dict[str, Any]:
        assert settings.context_size is not None
        tasks = labelled_tasks(
            at_hook(),
            data,
            n_texts=settings.n_probing_texts,
            context_size=settings.context_size,
            pooling=settings.probing_pooling,
            batch_size=settings.batch_size,
            progress=progress,
        )
        return probed(tasks, settings.probing_ks)

    def measured(measure: Callable[[TokenSet, bool], dict[str, Any]], name: str, n_tokens: int) -> dict[str, Any]:
        return measure(tokens(name).first(n_tokens), progress)

    # Named as when the first results were kept, so that those are still known again.
    shared = {"model": settings.model_name, "model_class": settings.model_class_name}
    shared |= {key: getattr(settings, key) for key in ("hook_name", "context_size", "max_norm")}
    probes = {"ks": settings.probing_ks, "pooling": settings.probing_pooling}
    sets, groups = list(settings.datasets), []
    for name, data in settings.datasets.items():
        on = shared | {"data": asdict(data), "files": file_facts([data.path, settings.model_name])}
        on |= {"held_out_fraction": settings.held_out_fraction} if data.held_out else {}
        for group, measure, n_tokens in (
            ("reconstruction", _reconstruction, settings.n_tokens),
            ("predictions", _predictions, settings.n_prediction_tokens),
        ):
            compute = partial(measured, measure, name, n_tokens)
            groups.append(MetricGroup(f"{name}/{group}", on | {"n_tokens": n_tokens}, compute, at_hook))
        others = sets[sets.index(name) + 1 :]
        against = {other: asdict(settings.datasets[other]) for other in others}
        on |= probes | {"n_tokens": settings.n_tokens, "against": against}
        on |= {"against_files": file_facts([settings.datasets[other].path for other in others])}
        groups.append(MetricGroup(f"{name}/probing", on, partial(passages_probed, name, others), at_hook))
    for name, labelled in settings.probing.items():
        on = shared | probes | {"data": asdict(labelled), "n_texts": settings.n_probing_texts}
        on |= {"files": file_facts([labelled.path, settings.model_name])}
        groups.append(MetricGroup(f"{name}/probing", on, partial(classes_probed, labelled), at_hook))
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
    if not predicts_next_tokens(at_hook.model):
        raise NotMeasured(NO_NEXT_TOKENS)
    baseline = evaluate_cross_entropy_baseline(at_hook, batches, progress=progress)
    return {
        "cross_entropy": evaluate_cross_entropy(at_hook, batches, baseline, progress=progress),
        "divergence": evaluate_divergence(at_hook, batches, progress=progress),
    }
