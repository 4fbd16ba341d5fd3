"""The stream of activations that an SAE trains on: images through the model, shuffled token by token.

`VisionActivationsStore` is to `HookedViT` what SAELens's `ActivationsStore` is to a language model, and its
state can be saved between any two batches.
"""

import json
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from sae_lens.training.prefetch import PrefetchingIterator
from safetensors import safe_open
from safetensors.torch import save_file

from sae_lens_sparsemax.activations.mixing import ResumableMixer
from sae_lens_sparsemax.data.image_loader import ImageLoader, Position
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.tokens import Tokens, read_hook, token_slice

STORE_STATE_FILENAME = "vision_activations_store.safetensors"


class ActivationBatch(NamedTuple):
    """Activations of a few images, in order."""

    acts: torch.Tensor
    """`(n_tokens, d_in)`"""
    position: Position
    """Where the source continues after them."""
    n_images: int
    n_bad_images: int


class ActivationSource(Protocol):
    """What gives activations in an endless order that can be taken up at a position."""

    @property
    def first_errors(self) -> list[str]:
        """One sentence for each of the first images that could not be used."""
        ...

    def batches(self, position: Position | None = None) -> Iterator[ActivationBatch]:
        """Batches from a position on; None for the start."""
        ...


class ModelActivations:
    """Activations computed from images as they are asked for.

    Args:
        model: the vision model.
        images: what it looks at.
        hook_name: full name of the hook to read.
        tokens: which tokens of an image to keep.
        dtype: of the activations given out.
        device: where they are given out; None leaves them with the model.
        autocast: run the model in bfloat16 where torch's autocast does.
    """

    def __init__(
        self,
        model: HookedViT,
        images: ImageLoader,
        hook_name: str,
        tokens: Tokens = "all",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        autocast: bool = False,
    ):
        self.model, self.images = model, images
        self.hook_name = model.resolve_hook_name(hook_name)
        self.positions = token_slice(tokens, model)
        self.dtype, self.device, self.autocast = dtype, device, autocast

    @property
    def first_errors(self) -> list[str]:
        """One sentence for each of the first images that could not be used."""
        return self.images.first_errors

    def batches(self, position: Position | None = None) -> Iterator[ActivationBatch]:
        """Batches from a position on; None for the start."""
        if "cache" in (position or {}):
            raise ValueError("The checkpoint was made with cached activations; set 'cached_activations_path' again.")
        for batch in self.images.batches(position):
            acts = self.activations_of(batch.pixel_values).flatten(0, 1)
            yield ActivationBatch(acts, batch.position, len(batch.pixel_values), len(batch.errors))

    @torch.no_grad()
    def activations_of(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Activations `(batch, token, d_in)` of preprocessed images, heads side by side."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast):
            acts = read_hook(self.model, self.hook_name, pixel_values)[:, self.positions].flatten(2)
        return acts.to(self.device if self.device is not None else acts.device, self.dtype)


class VisionActivationsStore:
    """Batches of shuffled activations without end: SAELens's `DataProvider` for vision models.

    Args:
        source: where the activations come from.
        batch_size: tokens in a batch.
        buffer_size: tokens in the shuffle buffer.
        mix_fraction: share of the buffer kept back at each refill; 0 leaves the tokens in order.
        prefetch: batches of images that a second thread runs through the model ahead of the training step;
            worth it where the model and the SAE do not compete for the same processor.
    """

    def __init__(
        self,
        source: ActivationSource,
        batch_size: int,
        buffer_size: int,
        mix_fraction: float = 0.5,
        prefetch: int = 0,
    ):
        self.source, self.prefetch = source, prefetch
        self.n_images, self.n_bad_images = 0, 0
        """Images whose tokens have entered the shuffle buffer, and images left out."""
        self._position: Position | None = None
        self._ahead: PrefetchingIterator[ActivationBatch] | None = None
        self._made: Iterator[ActivationBatch] | None = None
        self._mixer = ResumableMixer(self._activations(), buffer_size, batch_size, mix_fraction)

    def __iter__(self) -> "VisionActivationsStore":
        return self

    def __next__(self) -> torch.Tensor:
        """The next batch of activations, `(batch_size, d_in)`."""
        return next(self._mixer)

    def _activations(self) -> Iterator[torch.Tensor]:
        batches = self._made = self.source.batches(self._position)
        if self.prefetch:
            batches = self._ahead = PrefetchingIterator(batches, self.prefetch)
        for batch in batches:
            # Counted when they are used, not when they are made: what lies ahead is made again after a
            # resume.
            self._position = batch.position
            self.n_images += batch.n_images
            self.n_bad_images += batch.n_bad_images
            yield batch.acts

    def paused(self) -> AbstractContextManager[None]:
        """A context in which the model is free for something else; take no batch inside it."""
        return self._ahead.paused() if self._ahead is not None else nullcontext()

    def close(self) -> None:
        """Stop the second thread, or else the processes that decode. No batch can be taken afterwards."""
        if self._ahead is not None:
            self._ahead.close()
        elif isinstance(self._made, Generator):
            self._made.close()

    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Write the position in the data, the counts, the shuffle buffer and torch's CPU random state."""
        counts = {"position": self._position, "n_images": self.n_images, "n_bad_images": self.n_bad_images}
        state = {name: tensor.cpu() for name, tensor in self._mixer.state_dict().items()}
        save_file(state, Path(checkpoint_path) / STORE_STATE_FILENAME, {"store": json.dumps(counts)})

    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Continue where `save_to_checkpoint` was called; call it before the first batch.

        Raises:
            ValueError: there is no saved state, or it was saved with another batch or buffer size.
        """
        path = Path(checkpoint_path) / STORE_STATE_FILENAME
        if not path.is_file():
            raise ValueError(f"{str(checkpoint_path)!r} holds no state of a vision store ({path.name}).")
        with safe_open(path, framework="pt") as file:
            counts: dict[str, Any] = json.loads(file.metadata()["store"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self._position = counts["position"]
        self.n_images, self.n_bad_images = counts["n_images"], counts["n_bad_images"]
        self._mixer.load_state_dict(state)
