"""
Running an image model with its activations at one layer read or replaced.

Everything that classifies images through an SAE asks for no more than this of the model, so any model will do
that can be wrapped in a function.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from sae_lens import SAE
from transformer_lens.hook_points import HookedRootModule

from sae_lens_sparsemax.models.encoding import CHUNK_SIZE, SparseActs, evaluation_mode, sparse_acts
from sae_lens_sparsemax.models.splice import Edit


class EmbedImages(Protocol):
    """An image model that can be edited at one layer."""

    def __call__(self, pixel_values: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
        """Embeddings of images, shape (images, d_embedding), with `edit` applied to the layer's activations."""
        ...


def embed_through_hook(model: HookedRootModule, hook_name: str) -> EmbedImages:
    """An `EmbedImages` from a hooked model whose output for pixels is one embedding per image."""

    def embed(pixel_values: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
        hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = []
        if edit is not None:
            hooks.append((hook_name, lambda activations, hook: edit(activations)))  # noqa: ARG005
        with torch.no_grad():
            return model.run_with_hooks(pixel_values, fwd_hooks=hooks)

    return embed


def activations_of(embed: EmbedImages, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations at the layer, shape (images, tokens, d_in), and the embeddings of the unedited model."""
    seen: list[torch.Tensor] = []

    def read(activations: torch.Tensor) -> torch.Tensor:
        seen.append(activations)
        return activations

    embeddings = embed(pixel_values, read)
    return seen[0], embeddings


class MaskedReconstruction:
    """
    The edits that replace all tokens of an image by their reconstruction from some of the concepts.

    Activations are encoded once for all edits of the same tensor in a row, since only the masks differ.

    Args:
        sae: Any SAELens SAE.
        chunk_size: Tokens encoded or decoded at once; always whole images.
    """

    def __init__(self, sae: SAE[Any], chunk_size: int = CHUNK_SIZE) -> None:
        self.sae, self.chunk_size = sae, chunk_size
        self._seen: tuple[torch.Tensor, int] | None = None
        self._chunks: list[tuple[SparseActs, bool]] = []

    def edit(self, keep: torch.Tensor | None) -> Edit:
        """
        The edit for one choice of concepts.

        Args:
            keep: Which concepts each image keeps, bool, shape (images, d_sae), in the order of the images that the
                edit will be applied to; the others are set to zero. None keeps all.
        """

        def apply(activations: torch.Tensor) -> torch.Tensor:
            n_images, n_tokens, _ = activations.shape
            if keep is not None and len(keep) != n_images:
                raise ValueError(f"there are masks for {len(keep)} images, but {n_images} images")
            step = max(1, self.chunk_size // n_tokens)
            masks = [None] * -(-n_images // step) if keep is None else keep.split(step)
            parts = []
            with torch.no_grad(), evaluation_mode(self.sae):
                for (acts, is_sparse), mask in zip(self._encoded(activations, step), masks, strict=True):
                    value = acts.value
                    if mask is not None:
                        value = value * mask.to(value.device)[acts.row // n_tokens, acts.col]
                    parts.append(self.sae.decode(_tensor(acts, value, is_sparse)).to(activations))
            return torch.cat(parts).reshape(activations.shape)

        return apply

    def _encoded(self, activations: torch.Tensor, step: int) -> list[tuple[SparseActs, bool]]:
        """The activations of every `step` images, and whether the SAE gave them as a sparse tensor."""
        if self._seen is None or self._seen[0] is not activations or self._seen[1] != activations._version:
            self._chunks = []
            for images in activations.split(step):
                acts = self.sae.encode(images.flatten(0, 1).to(self.sae.device, self.sae.dtype))
                self._chunks.append((sparse_acts(acts), acts.is_sparse))
            self._seen = (activations, activations._version)
        return self._chunks


def masked_reconstruction(sae: SAE[Any], keep: torch.Tensor | None, chunk_size: int = CHUNK_SIZE) -> Edit:
    """A single edit of `MaskedReconstruction`."""
    return MaskedReconstruction(sae, chunk_size).edit(keep)


def _tensor(acts: SparseActs, value: torch.Tensor, is_sparse: bool) -> torch.Tensor:
    """Activations of shape (n, d_sae) with these values, in the form that the SAE itself gives."""
    shape = (acts.n_rows, acts.d_sae)
    if is_sparse:
        return torch.sparse_coo_tensor(torch.stack([acts.row, acts.col]), value, shape, check_invariants=False)
    dense = torch.zeros(shape, dtype=value.dtype, device=value.device)
    dense[acts.row, acts.col] = value
    return dense
