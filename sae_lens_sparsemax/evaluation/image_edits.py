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

from sae_lens_sparsemax.evaluation.activations import CHUNK_SIZE, evaluation_mode

Edit = Callable[[torch.Tensor], torch.Tensor]
"""Takes the layer's activations, shape (images, tokens, d_in), and returns what the model goes on with."""


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


def masked_reconstruction(sae: SAE[Any], keep: torch.Tensor | None, chunk_size: int = CHUNK_SIZE) -> Edit:
    """
    The edit that replaces all tokens of an image by their reconstruction from some of the concepts.

    Args:
        sae: Any SAELens SAE.
        keep: Which concepts each image keeps, bool, shape (images, d_sae), in the order of the images that the
            edit will be applied to; the others are set to zero. None keeps all.
        chunk_size: Tokens encoded at once; always whole images.
    """

    def edit(activations: torch.Tensor) -> torch.Tensor:
        n_images, n_tokens, d_in = activations.shape
        if keep is not None and len(keep) != n_images:
            raise ValueError(f"there are masks for {len(keep)} images, but {n_images} images")
        step = max(1, chunk_size // n_tokens)
        parts = []
        with torch.no_grad(), evaluation_mode(sae):
            for start in range(0, n_images, step):
                tokens = activations[start : start + step].reshape(-1, d_in)
                feature_acts = sae.encode(tokens.to(sae.device, sae.dtype))
                if keep is not None:
                    rows = keep[start : start + step].to(sae.device)
                    feature_acts = _masked(feature_acts, rows, n_tokens)
                parts.append(sae.decode(feature_acts).to(activations))
        return torch.cat(parts).reshape(activations.shape)

    return edit


def _masked(feature_acts: torch.Tensor, keep: torch.Tensor, n_tokens: int) -> torch.Tensor:
    """Activations of shape (images · tokens, d_sae), dense or sparse COO, where `keep` allows them."""
    if not feature_acts.is_sparse:
        return (feature_acts.unflatten(0, (-1, n_tokens)) * keep[:, None]).flatten(0, 1)
    feature_acts = feature_acts.coalesce()
    row, col = feature_acts.indices()
    value = feature_acts.values() * keep[row // n_tokens, col]
    return torch.sparse_coo_tensor(feature_acts.indices(), value, feature_acts.shape, check_invariants=False)
