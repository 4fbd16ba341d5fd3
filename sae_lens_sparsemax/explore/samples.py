"""What a data set is to the explorer: samples (images or contexts of text) of equally many tokens each."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import torch
from sae_lens import SAE

from sae_lens_sparsemax.models.encoding import EncodedChunk, SparseActs, encode_chunks


class SampleBatch(NamedTuple):
    """Activations of a few samples, in the order of the data set."""

    acts: torch.Tensor
    """Shape (n_samples, n_tokens, d_in)."""
    ids: torch.Tensor
    """Number of each sample in the order of the data set, shape (n_samples,), growing."""
    keep: torch.Tensor | None = None
    """Whether each token counts, shape (n_samples, n_tokens); None if all do."""
    labels: torch.Tensor | None = None
    """Class of each sample, shape (n_samples,)."""
    embeddings: torch.Tensor | None = None
    """Embeddings of the samples by an independent encoder, shape (n_samples, d_embedding)."""


class SampleStream(Protocol):
    """Samples that can be read from any place on."""

    @property
    def kind(self) -> Literal["image", "text"]:
        """What its samples are."""
        ...

    n_samples: int
    """Samples that will be read, at most."""
    n_tokens: int
    """Tokens of a sample."""
    class_names: list[str]
    """Empty if samples have no classes."""
    d_embedding: int
    """Width of the embeddings by an independent encoder; 0 if there is none."""

    def batches(self, start: int) -> Iterator[tuple[SampleBatch, int]]:
        """Batches from sample number `start` on, each with the number to go on with after it."""
        ...

    def describe(self) -> dict[str, Any]:
        """Model, hook and data, as they are shown."""
        ...


class EncodedBatch(NamedTuple):
    """What an SAE makes of a batch of samples."""

    chunks: list[EncodedChunk]
    """Input, reconstruction and activations of the tokens that count, in order."""
    kept: SparseActs
    """The activations of all chunks; rows are the tokens that count."""
    placed: SparseActs
    """The same activations; rows are all tokens, sample after sample."""


def encode_batch(sae: SAE[Any], batch: SampleBatch) -> EncodedBatch:
    """Encode the tokens of a batch that count, a chunk of them at a time."""
    n, n_tokens = batch.acts.shape[:2]
    flat = batch.acts.flatten(0, 1)
    place = torch.arange(n * n_tokens) if batch.keep is None else batch.keep.flatten().cpu().nonzero().flatten()
    chunks: list[EncodedChunk] = []
    row, col, value, start = [], [], [], 0
    for chunk in encode_chunks(sae, [flat if batch.keep is None else flat[place.to(flat.device)]]):
        acts = chunk.acts
        row.append(acts.row.cpu() + start)
        col.append(acts.col.cpu())
        value.append(acts.value.cpu())
        start += acts.n_rows
        chunks.append(chunk)
    d_sae = sae.cfg.d_sae
    if not chunks:
        none = torch.zeros(0, dtype=torch.int64)
        empty = SparseActs(none, none, torch.zeros(0), 0, d_sae)
        return EncodedBatch([], empty, empty._replace(n_rows=n * n_tokens))
    kept = SparseActs(torch.cat(row), torch.cat(col), torch.cat(value), start, d_sae)
    return EncodedBatch(chunks, kept, kept._replace(row=place[kept.row], n_rows=n * n_tokens))
