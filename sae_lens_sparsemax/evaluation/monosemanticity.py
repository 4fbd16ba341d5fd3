"""Monosemanticity score: do the images that activate a neuron look alike to an independent encoder?

For activations a_ik of image i, min-max scaled per neuron k to [0, 1], and unit-norm embeddings e_i,

    MS_k = Σ_{i<j} a_ik a_jk cos(e_i, e_j) / Σ_{i<j} a_ik a_jk

(Pach et al., "Sparse Autoencoders Learn Monosemantic Features in Vision-Language Models", 2025). The double
sum is never taken: with S_k = Σ_i a_ik e_i it equals (‖S_k‖² − Σ_i a_ik²) / ((Σ_i a_ik)² − Σ_i a_ik²), and as
the scaling is affine, S_k and both sums follow from the unscaled activations. One pass, linear in the number
of images.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_sparsemax.models.encoding import CHUNK_SIZE, SparseActs, encode_chunks, encode_images

# With fewer activating images a high score is decided by a few near-duplicates.
MIN_IMAGES = 10

# Weight of the pairs, relative to the square of the sum, below which a neuron counts as having none: one
# active image leaves only rounding errors.
_NO_WEIGHT = 1e-12


@dataclass(frozen=True)
class MonosemanticityMetrics:
    """Monosemanticity over the neurons of one SAE."""

    n_images: int
    """Images seen."""
    n_scored: int
    """Neurons with a score: those that at least two images activate, not all equally."""
    mean: float
    """Mean score over these."""
    max: float
    """Highest score among these."""
    n_scored_on_10_images: int
    """Neurons that at least 10 images activate."""
    mean_on_10_images: float
    """Mean score over these."""
    max_on_10_images: float
    """Highest score among these."""


class MonosemanticityAccumulator:
    """Collects the sums that scores are made of; memory (d_sae, d_embedding), float64."""

    def __init__(self, d_sae: int, d_embedding: int) -> None:
        self.n_images = 0
        self.sum = torch.zeros(d_sae, dtype=torch.float64)
        self.sum_of_squares = torch.zeros(d_sae, dtype=torch.float64)
        self.weighted_embeddings = torch.zeros(d_sae, d_embedding, dtype=torch.float64)
        self.embedding_sum = torch.zeros(d_embedding, dtype=torch.float64)
        self.lowest = torch.full((d_sae,), torch.inf, dtype=torch.float64)
        self.highest = torch.full((d_sae,), -torch.inf, dtype=torch.float64)
        self.n_active = torch.zeros(d_sae, dtype=torch.int64)

    def add(self, acts: SparseActs, embeddings: torch.Tensor) -> None:
        """Add images: their activations, and embeddings of shape (images, d_embedding) of any norm but zero.

        Raises `ValueError` if the two are not of the same number of images, or an embedding is zero.
        """
        if acts.n_rows != len(embeddings):
            raise ValueError(f"there are {acts.n_rows} images, but {len(embeddings)} embeddings")
        embeddings = embeddings.cpu().double()
        norms = embeddings.norm(dim=-1, keepdim=True)
        if (norms == 0).any():
            raise ValueError("an embedding is zero, so it has no cosine with the others")
        embeddings = embeddings / norms
        row, col, value = acts.row.cpu(), acts.col.cpu(), acts.value.cpu().double()
        self.n_images += acts.n_rows
        self.embedding_sum += embeddings.sum(0)
        self.sum.index_add_(0, col, value)
        self.sum_of_squares.index_add_(0, col, value.pow(2))
        self.n_active += torch.bincount(col, minlength=acts.d_sae)
        self.lowest.scatter_reduce_(0, col, value, "amin")
        self.highest.scatter_reduce_(0, col, value, "amax")
        # Only rows of neurons that are active here are touched, not the whole table.
        active, position = col.unique(return_inverse=True)
        weights = torch.sparse_coo_tensor(
            torch.stack([position, row]), value, (len(active), acts.n_rows), check_invariants=False
        )
        self.weighted_embeddings[active] += torch.sparse.mm(weights, embeddings)

    def scores(self) -> torch.Tensor:
        """Score of every neuron, shape (d_sae,), float64; NaN for neurons without weight."""
        n = self.n_images
        # An image on which a neuron is not active has activation 0, which takes part in the scaling.
        sometimes_zero = self.n_active < n
        low = torch.where(sometimes_zero, self.lowest.clamp(max=0), self.lowest)
        high = torch.where(sometimes_zero, self.highest.clamp(min=0), self.highest)
        span = high - low
        total = (self.sum - n * low) / span
        squares = (self.sum_of_squares - 2 * low * self.sum + n * low**2) / span**2
        vectors = (self.weighted_embeddings - low[:, None] * self.embedding_sum) / span[:, None]
        weight = total**2 - squares
        scores = (vectors.pow(2).sum(-1) - squares) / weight
        return torch.where((span > 0) & (weight > _NO_WEIGHT * total**2), scores, torch.nan)

    def result(self) -> MonosemanticityMetrics:
        """The scores summarised."""
        scores = self.scores()
        scored = scores[~scores.isnan()]
        often = scores[~scores.isnan() & (self.n_active >= MIN_IMAGES)]
        return MonosemanticityMetrics(
            n_images=self.n_images,
            n_scored=len(scored),
            mean=scored.mean().item(),
            max=scored.max().item() if len(scored) else float("nan"),
            n_scored_on_10_images=len(often),
            mean_on_10_images=often.mean().item(),
            max_on_10_images=often.max().item() if len(often) else float("nan"),
        )


def evaluate_monosemanticity(
    sae: SAE[Any],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    chunk_size: int = CHUNK_SIZE,
) -> MonosemanticityMetrics:
    """Monosemanticity of an SAE's neurons over images.

    Args:
        sae: Any SAELens SAE.
        batches: Pairs of activations, of shape (images, d_in) or (images, tokens, d_in), and embeddings of
            the same images by an independent encoder, shape (images, d_embedding). With tokens, a neuron's
            activation on an image is its mean over them.
        chunk_size: Tokens encoded at once.
    """
    accumulator: MonosemanticityAccumulator | None = None
    for activations, embeddings in batches:
        if accumulator is None:
            accumulator = MonosemanticityAccumulator(sae.cfg.d_sae, embeddings.shape[-1])
        encode = encode_images if activations.ndim == 3 else encode_chunks
        start = 0
        for chunk in encode(sae, [activations], chunk_size):
            accumulator.add(chunk.acts, embeddings[start : start + chunk.acts.n_rows])
            start += chunk.acts.n_rows
    if accumulator is None:
        raise ValueError("there were no images to evaluate the SAE on")
    return accumulator.result()
