"""Activations as models give them, in an order that can be taken up at a position: of images, and of text."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from sae_lens.training.activations_store import ActivationsStore
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.image_loader import ImageLoader
from sae_lens_sparsemax.data.order import Position, Wanted, everything
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook


class ActivationBatch(NamedTuple):
    """Activations of a few inputs (images, or contexts of text), in order."""

    acts: torch.Tensor
    """`(n_tokens, d_in)`"""
    lengths: torch.Tensor
    """Tokens of each input, `(n_inputs,)` int64."""
    position: Position
    """Where the source continues after them."""
    n_bad_inputs: int = 0
    """Inputs that could not be used."""
    errors: Sequence[str] = ()
    """One sentence for each of those, where they were met just now."""
    n_left_out: int = 0
    """Tokens left out for their norm."""


class ActivationSource(Protocol):
    """What gives activations in an endless order that can be taken up at a position."""

    @property
    def first_errors(self) -> list[str]:
        """One sentence for each of the first inputs that could not be used."""
        ...

    def batches(self, position: Position | None = None) -> Iterator[ActivationBatch]:
        """Batches from a position on; None for the start."""
        ...


class ImageActivations:
    """Activations computed from images as they are asked for.

    Args:
        at_hook: the model, where it is read, and which tokens of an image are kept.
        images: what it looks at.
        dtype: of the activations given out.
        device: where they are given out; None leaves them with the model.
        autocast: run the model in bfloat16 where torch's autocast does.
    """

    def __init__(
        self,
        at_hook: VisionAtHook,
        images: ImageLoader,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        autocast: bool = False,
    ):
        self.at_hook, self.images = at_hook, images
        self.dtype, self.device, self.autocast = dtype, device, autocast

    @property
    def first_errors(self) -> list[str]:
        """One sentence for each of the first images that could not be used."""
        return self.images.first_errors

    def batches(
        self,
        position: Position | None = None,
        *,
        one_pass: bool = False,
        wanted: Wanted = everything,
    ) -> Iterator[ActivationBatch]:
        """Batches from a position on (None for the start); see `ImageLoader.batches`."""
        if "cache" in (position or {}):
            raise ValueError("The checkpoint was made with cached activations; set 'cached_activations_path' again.")
        for batch in self.images.batches(position, one_pass=one_pass, wanted=wanted):
            acts = self.activations_of(batch.pixel_values)
            lengths = torch.full((len(acts),), acts.shape[1])
            yield ActivationBatch(acts.flatten(0, 1), lengths, batch.position, len(batch.errors), batch.errors)

    @torch.no_grad()
    def activations_of(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Activations `(batch, token, d_in)` of preprocessed images, heads side by side."""
        with torch.autocast(self.at_hook.model.device.type, torch.bfloat16, enabled=self.autocast):
            acts = self.at_hook.activations(pixel_values)
        return acts.to(self.device if self.device is not None else acts.device, self.dtype)


class TextActivations:
    """Activations of the contexts of a text, once, as SAELens's store computes and filters them.

    But: as in SAELens's store, contexts at the end that do not fill a batch are left out.

    Args:
        store: holds model, text, hook and what is left out; it is moved about and should serve nothing else.
        max_norm: tokens with a larger norm are left out.
    """

    def __init__(self, store: ActivationsStore, max_norm: float = math.inf) -> None:
        self.store, self.max_norm = store, max_norm

    def batches(self, position: Position | None = None, wanted: Wanted = everything) -> Iterator[ActivationBatch]:
        """Batches of `store_batch_size_prompts` contexts from a position on (None for the start) to the last.

        Those that are not `wanted`, which is told how many contexts were drawn before, the model does not see.
        """
        store, drawn = self.store, (position or {}).get("drawn", 0)
        store.iterable_sequences = store._iterate_tokenized_sequences()
        for _ in tqdm(range(drawn), desc="Moving to the position in the text", leave=False, disable=not drawn):
            next(store.iterable_sequences, None)
        n_inputs = store.store_batch_size_prompts
        while True:
            drawn += n_inputs
            if not wanted(drawn - n_inputs):
                if len(list(islice(store.iterable_sequences, n_inputs))) < n_inputs:
                    return
                continue
            try:
                acts, tokens = store.get_raw_llm_batch(raise_on_epoch_end=True)
            except StopIteration:
                return
            kept = torch.ones(len(acts), dtype=torch.bool, device=acts.device)
            if store.exclude_special_tokens is not None and tokens is not None:
                kept = ~torch.isin(tokens, store.exclude_special_tokens)
            outlying = kept & (acts.float().norm(dim=-1) > self.max_norm)
            kept = kept & ~outlying
            lengths = kept.view(n_inputs, -1).sum(1).cpu()
            yield ActivationBatch(acts[kept], lengths, {"drawn": drawn}, n_left_out=int(outlying.sum()))
