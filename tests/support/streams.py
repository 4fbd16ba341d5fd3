"""Samples made on the spot: random activations of a given shape, with what an image or a text data set has besides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from sae_lens import SAE

from sae_lens_sparsemax.data.order import Wanted, everything
from sae_lens_sparsemax.explore.samples import SampleBatch
from sae_lens_sparsemax.models.encoding import SparseActs, sparse_acts
from sae_lens_sparsemax.models.saved_saes import load_sae
from tests.support.small_sae import D_IN, small_sae


class RandomStream:
    """`n_samples` samples of `n_tokens` random activations each, in batches."""

    def __init__(
        self,
        n_samples: int = 23,
        n_tokens: int = 5,
        *,
        kind: Literal["image", "text"] = "image",
        n_classes: int = 0,
        d_embedding: int = 0,
        batch_size: int = 4,
        some_left_out: bool = False,
        stop_before: int | None = None,
    ):
        generator = torch.Generator().manual_seed(3)
        self.kind, self.n_samples, self.n_tokens, self.batch_size = kind, n_samples, n_tokens, batch_size
        self.acts = torch.randn(n_samples, n_tokens, D_IN, generator=generator) + 0.5
        self.class_names = [f"class {k}" for k in range(n_classes)]
        self.labels = torch.randint(max(1, n_classes), (n_samples,), generator=generator)
        self.d_embedding = d_embedding
        self.embeddings = torch.randn(n_samples, max(1, d_embedding), generator=generator)
        self.keep = torch.rand(n_samples, n_tokens, generator=generator) < 0.7 if some_left_out else None
        self.stop_before = stop_before

    def batches(self, start: int, wanted: Wanted = everything) -> Iterator[tuple[SampleBatch, int]]:
        for first in filter(wanted, range(start, self.n_samples, self.batch_size)):
            if self.stop_before is not None and first >= self.stop_before:
                raise KeyboardInterrupt
            rows = slice(first, min(first + self.batch_size, self.n_samples))
            yield (
                SampleBatch(
                    self.acts[rows],
                    torch.arange(self.n_samples)[rows],
                    keep=None if self.keep is None else self.keep[rows],
                    labels=self.labels[rows] if self.class_names else None,
                    embeddings=self.embeddings[rows] if self.d_embedding else None,
                ),
                rows.stop,
            )

    def identity(self) -> dict[str, dict[str, Any]]:
        return {"samples": {"data": "random"}, "read": {}}


def inference_sae() -> SAE[Any]:
    return small_sae().eval()


def inference_sae_of_passes(folder: Path) -> SAE[Any]:
    """One of two passes that drops what is weak, saved in a folder and loaded."""
    small_sae(passes=2, refinements=1, alpha=3.0, activation_floor=0.3).save_inference_model(folder)
    return load_sae(str(folder))


def dense_acts(sae: SAE[Any], stream: RandomStream) -> torch.Tensor:
    """All activations, shape (n_samples, n_tokens, d_sae); 0 at tokens that are left out."""
    with torch.no_grad():
        acts = sae.encode(stream.acts.flatten(0, 1))
    acts = (acts.to_dense() if acts.is_sparse else acts).unflatten(0, (stream.n_samples, stream.n_tokens))
    return acts if stream.keep is None else acts * stream.keep[..., None]


def sparse(acts: torch.Tensor) -> SparseActs:
    """Activations of shape (n_samples, n_tokens, d_sae) as a list, a row for each token."""
    return sparse_acts(acts.flatten(0, 1))
