"""Contexts of text as samples for the explorer, through the language model to the SAE's hook."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.evaluation.harness import EvaluationSettings, open_text
from sae_lens_sparsemax.explore.samples import SampleBatch
from sae_lens_sparsemax.explore.settings import ExploreSettings

DEFAULT_CONTEXTS = 2_000
_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character takes four bytes at most, and a token that begins with the end of one may hold more.
_MOST_PARTS = 6


class TextStream:
    """Contexts of a data set in its order, documents joined as SAELens joins them in training.

    Args:
        sae: An SAE trained on a language model.
        settings: What replaces its metadata.

    Raises:
        ValueError: The metadata lack something that the settings do not give, or model, width and data do not fit.
    """

    kind: Literal["text"] = "text"

    def __init__(self, sae: SAE[Any], settings: ExploreSettings) -> None:
        shared = ("model", "model_class", "dataset", "dataset_split", "dataset_config", "text_column", "context_size")
        values: dict[str, Any] = {name: getattr(settings, name) for name in (*shared, "batch_size", "device")}
        self.model, self.store, excluded, self.on = open_text(sae, EvaluationSettings(**values))
        self.settings, self.tokenizer = settings, self.model.tokenizer
        self.n_samples = settings.samples or DEFAULT_CONTEXTS
        self.n_tokens = len(range(self.on["context_size"])[slice(*self.store.seqpos_slice)])
        self.class_names: list[str] = []
        self.d_embedding = 0
        self._texts: dict[int, str] = {}
        self._excluded = torch.tensor(excluded, dtype=torch.int64)
        self._max_norm: float | None = settings.max_norm or sae.cfg.metadata.max_norm

    def batches(self, start: int) -> Iterator[tuple[SampleBatch, int]]:
        """Batches from context `start` on, until there are enough or the text ends."""
        contexts = itertools.islice(self.store._iterate_tokenized_sequences(), start, self.n_samples)
        first = start
        while group := list(itertools.islice(contexts, self.settings.batch_size)):
            tokens = torch.stack(group)
            acts = self.store.get_activations(tokens.to(self.settings.device))
            tokens = tokens[:, slice(*self.store.seqpos_slice)].cpu()
            last = first + len(group)
            keep = ~torch.isin(tokens, self._excluded)
            if self._max_norm is not None:
                keep &= acts.flatten(2).norm(dim=-1).cpu() <= self._max_norm
            yield SampleBatch(acts, torch.arange(first, last), keep=keep, tokens=tokens), last
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
                yield number, tokens[slice(*self.store.seqpos_slice)].cpu()
                number = next(wanted, None)

    def context_texts(self, tokens: list[int]) -> list[str]:
        """Each token of a context as it reads there; of a character cut into several, the first has it all."""
        texts = [self.token_text(token) for token in tokens]
        for place, text in enumerate(texts):
            if _BROKEN not in text:
                continue
            for last in range(place + 1, min(place + _MOST_PARTS, len(tokens))):
                whole = self.tokenizer.decode(tokens[place : last + 1])
                if _BROKEN not in whole:
                    texts[place : last + 1] = [whole, *[""] * (last - place)]
                    break
        return texts

    def token_text(self, token: int) -> str:
        """A token as it reads in a text, with the space before it where there is one."""
        if token not in self._texts:
            self._texts[token] = self._decode(token)
        return self._texts[token]

    def _decode(self, token: int) -> str:
        text = self.tokenizer.decode([token])
        piece = self.tokenizer.convert_ids_to_tokens(token)
        # SentencePiece tokenizers drop the space of a token that is decoded by itself.
        return " " + text if isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ") else text

    def describe(self) -> dict[str, Any]:
        """Model, hook and data."""
        return {
            "model": self.on["model"],
            "hook": self.on["hook_name"],
            "tokens": "all",
            "dataset": self.on["dataset"],
            "split": self.on["dataset_split"],
            "context_size": self.on["context_size"],
            "max_norm": self._max_norm,
            "encoder": None,
        }
