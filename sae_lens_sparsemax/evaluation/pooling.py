"""Image-level samples: everything an SAE makes of an image's tokens, averaged over them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_sparsemax.models.encoding import CHUNK_SIZE, EncodedChunk, SparseActs, encode_chunks


def encode_images(
    sae: SAE[Any], batches: Iterable[torch.Tensor], chunk_size: int = CHUNK_SIZE
) -> Iterator[EncodedChunk]:
    """
    Encode the tokens of images and average input, reconstruction and activations over each image's tokens.

    Args:
        sae: Any SAELens SAE.
        batches: Activations of shape (images, tokens, d_in).
        chunk_size: Tokens encoded at once; always whole images, so at least one.

    Yields:
        Chunks whose rows are images.

    Raises:
        ValueError: If a batch does not have the three dimensions.
    """
    for batch in batches:
        if batch.ndim != 3:
            raise ValueError(f"images need shape (images, tokens, d_in), got {tuple(batch.shape)}")
        n_tokens = batch.shape[1]
        for images in batch.split(max(1, chunk_size // n_tokens)):
            (chunk,) = encode_chunks(sae, [images], chunk_size=images.shape[0] * n_tokens)
            yield EncodedChunk(
                chunk.sae_in.unflatten(0, (-1, n_tokens)).mean(1),
                chunk.sae_out.unflatten(0, (-1, n_tokens)).mean(1),
                mean_over_tokens(chunk.acts, n_tokens),
            )


def mean_over_tokens(acts: SparseActs, n_tokens: int) -> SparseActs:
    """Activations averaged over groups of `n_tokens` consecutive rows, which stay sparse."""
    n_images = acts.n_rows // n_tokens
    key = (acts.row // n_tokens) * acts.d_sae + acts.col
    unique, position = key.unique(return_inverse=True)
    value = torch.zeros(len(unique), dtype=acts.value.dtype, device=acts.value.device)
    value.index_add_(0, position, acts.value)
    return SparseActs(unique // acts.d_sae, unique % acts.d_sae, value / n_tokens, n_images, acts.d_sae)
