"""Contexts of text as samples for the explorer, through the language model to the SAE's hook."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.evaluation.harness import open_contexts
from sae_lens_sparsemax.explore.samples import SampleBatch
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.models.language_models import load_language_model

DEFAULT_CONTEXTS = 2_000


class TextStream:
    """Contexts of a data set in its order, documents joined as SAELens joins them in training.

    Args:
        sae: An SAE trained on a language model.
        settings: What replaces its metadata.
        load: What loads the model; see `load_each_once`.

    Raises:
        ValueError: The metadata lack something that the settings do not give, or model, width and data do not fit.
    """

    kind: Literal["text"] = "text"

    def __init__(
        self, sae: SAE[Any], settings: ExploreSettings, load: Callable[..., Any] = load_language_model
    ) -> None:
        self.at_hook, self.store, self.on = open_contexts(sae, settings, max_norm=settings.max_norm, load=load)
        self.settings, self.model = settings, self.at_hook.model
        self.n_samples = settings.samples or DEFAULT_CONTEXTS
        self.n_tokens = len(range(self.on["context_size"])[self.at_hook.seqpos])
        self.class_names: list[str] = []
        self.d_embedding = 0

    def batches(self, start: int) -> Iterator[tuple[SampleBatch, int]]:
        """Batches from context `start` on, until there are enough or the text ends."""
        contexts = itertools.islice(self.store._iterate_tokenized_sequences(), start, self.n_samples)
        first = start
        while group := list(itertools.islice(contexts, self.settings.batch_size)):
            tokens, last = torch.stack(group), first + len(group)
            acts = self.at_hook.activations(tokens)
            keep = self.at_hook.is_read(tokens, acts)[:, self.at_hook.seqpos].cpu()
            yield SampleBatch(acts[:, self.at_hook.seqpos], torch.arange(first, last), keep=keep), last
            first = last

    def contexts(self, ids: torch.Tensor, *, progress: bool = True) -> Iterator[tuple[int, torch.Tensor]]:
        """Numbers and token ids of contexts, read once more from the start; `ids` must grow."""
        wanted = iter(ids.tolist())
        number = next(wanted, None)
        bar = tqdm(self.store._iterate_tokenized_sequences(), desc="Contexts", disable=not progress, leave=False)
        for place, tokens in enumerate(bar):
            if number is None:
                return
            if place == number:
                yield number, tokens[self.at_hook.seqpos].cpu()
                number = next(wanted, None)

    def describe(self) -> dict[str, Any]:
        """Model, hook and data."""
        return {
            "model": self.on["model_name"],
            "hook": self.on["hook_name"],
            "tokens": "all",
            "dataset": self.on["dataset_path"],
            "split": self.on["dataset_split"],
            "context_size": self.on["context_size"],
            "max_norm": self.at_hook.max_norm if math.isfinite(self.at_hook.max_norm) else None,
            "encoder": None,
        }
