"""The language model of an SAE, and named sets of text as tokens and activations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.held_out import part_of_dataset
from sae_lens_sparsemax.data.texts import load_text_dataset, require_one_context
from sae_lens_sparsemax.models.language_models import (
    check_width,
    excluded_token_ids,
    hook_width,
    keep_mask,
    load_language_model,
    resolve_hook_name,
)


@dataclass(frozen=True)
class TextData:
    """One set of text to evaluate on."""

    path: str
    """Hub id, local jsonl, json, parquet or txt file, or folder; `quickstart` is the package's own text."""
    split: str = "train"
    """Split of the data set; local files form the split train."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    text_column: str = "text"
    """Column with the text."""
    held_out: bool = False
    """Only the documents that `held_out_fraction` keeps out of training, by the hash of their text."""


class TextModel:
    """
    A language model at the hook of an SAE.

    Args:
        sae: Any SAELens SAE; what its metadata lack is completed.
        model_name, model_class, hook_name: As for training.
        context_size: Tokens per context.
        batch_size: Contexts at a time.
        device: Where the model runs.

    Raises:
        ValueError: The model cannot be loaded, has no such hook, or another width there than the SAE.
    """

    def __init__(
        self,
        sae: SAE[Any],
        model_name: str,
        model_class: str,
        hook_name: str,
        context_size: int,
        batch_size: int,
        device: str,
    ) -> None:
        meta = sae.cfg.metadata
        kwargs = meta.model_from_pretrained_kwargs if model_name == meta.model_name else None
        self.model: Any = load_language_model(model_class, model_name, hook_name, device, kwargs)
        self.hook_name = meta.hook_name = resolve_hook_name(self.model, hook_name)
        check_width(sae.cfg.d_in, hook_width(self.model, self.hook_name, meta.hook_head_index), self.hook_name)
        if meta.prepend_bos is None:
            meta.prepend_bos = True  # what SAELens trains with unless told otherwise
        self.sae, self.context_size, self.batch_size, self.device = sae, context_size, batch_size, device
        self.ignore_tokens = excluded_token_ids(meta.exclude_special_tokens, self.model)

    def text(self, data: TextData, held_out_fraction: float, n_tokens: int) -> TokenSet:
        """The first `n_tokens` tokens of a data set, or all that there are."""
        dataset = load_text_dataset(data.path, split=data.split, config=data.config, text_column=data.text_column)
        if data.held_out:
            dataset = part_of_dataset(dataset, "held_out", held_out_fraction, data.path)
        meta = self.sae.cfg.metadata
        store = ActivationsStore.from_sae(
            self.model,
            self.sae,
            dataset=dataset,
            context_size=self.context_size,
            store_batch_size_prompts=self.batch_size,
            device=self.device,
            disable_concat_sequences=bool(meta.disable_concat_sequences),
            sequence_separator_token=meta.get("sequence_separator_token", "bos"),
        )
        require_one_context(store, data.path)
        contexts = []
        for tokens in store.iterable_sequences:
            contexts.append(tokens.cpu())
            if len(contexts) * self.context_size >= n_tokens:
                break
        return TokenSet(self, store, torch.stack(contexts))


class TokenSet:
    """Contexts of one set of text, and their activations, computed each time they are asked for."""

    def __init__(self, model: TextModel, store: ActivationsStore, tokens: torch.Tensor) -> None:
        self.model, self._store, self.tokens = model, store, tokens

    def first(self, n_tokens: int) -> TokenSet:
        """The first `n_tokens` tokens, rounded up to whole contexts."""
        return TokenSet(self.model, self._store, self.tokens[: -(-n_tokens // self.tokens.shape[1])])

    def batches(self) -> list[torch.Tensor]:
        """Token ids, shape (batch, context)."""
        return list(self.tokens.to(self.model.device).split(self.model.batch_size))

    def activations(self, max_norm: float = math.inf, description: str | None = None) -> Iterator[torch.Tensor]:
        """
        Activations of shape (tokens, d_in), without ignored tokens and those of a norm above `max_norm`.

        With a description, a progress bar is shown.
        """
        for tokens in tqdm(self.batches(), desc=description, disable=description is None, leave=False):
            acts = self._store.get_activations(tokens).flatten(0, 1)
            keep = keep_mask(tokens, self.model.ignore_tokens).flatten().to(acts.device)
            yield acts[keep & (acts.norm(dim=-1) <= max_norm)]
