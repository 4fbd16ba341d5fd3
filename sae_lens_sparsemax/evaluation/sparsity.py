"""How many concepts tokens and images need, whether that follows their complexity, and what k to give TopK.

The number of active concepts of a sparsemax SAE varies from token to token; its mean is the k at which TopK and
BatchTopK are comparable (Table 4 of the sparsemax paper).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from sae_lens import SAE

from sae_lens_sparsemax.evaluation.streaming import CountDistribution
from sae_lens_sparsemax.models.encoding import CHUNK_SIZE, encode_whole_images, mean_over_tokens


@dataclass(frozen=True)
class L0Distribution:
    """How L0 is distributed over tokens, or over images."""

    n: int
    """Tokens or images counted."""
    mean: float
    """Mean L0."""
    std: float
    """Standard deviation; 0 for TopK over tokens."""
    p5: float
    """5th percentile."""
    p25: float
    """25th percentile."""
    p50: float
    """Median."""
    p75: float
    """75th percentile."""
    p95: float
    """95th percentile."""
    max: int
    """Largest L0."""
    counts: list[int]
    """Entry i is the number of tokens or images with exactly i active concepts."""


@dataclass(frozen=True)
class L0AgainstComplexity:
    """Whether more complex inputs activate more concepts."""

    n: int
    """Inputs compared."""
    spearman: float
    """Rank correlation of L0 and complexity, ties at their mean rank; NaN if either never varies."""
    pearson: float
    """Linear correlation; NaN if either never varies."""
    bin_complexity: list[float]
    """Mean complexity of inputs sorted by it and cut into bins of equal size."""
    bin_l0: list[float]
    """Mean L0 in the same bins."""


def l0_distribution(distribution: CountDistribution) -> L0Distribution:
    """The summary of counted L0; raises `ValueError` if nothing was counted."""
    if distribution.n == 0:
        raise ValueError("there were no tokens to evaluate the SAE on")
    return L0Distribution(
        n=distribution.n,
        mean=distribution.mean(),
        std=distribution.std(),
        **{f"p{percent}": distribution.percentile(percent) for percent in (5, 25, 50, 75, 95)},
        max=len(distribution.counts) - 1,
        counts=distribution.counts.tolist(),
    )


class ImageL0(NamedTuple):
    """How many concepts images need."""

    per_token: L0Distribution
    """Concepts active on each token."""
    per_image: L0Distribution
    """Concepts active on any token of each image."""
    means: torch.Tensor
    """Mean L0 over the tokens of each image, shape (n_images,), float64, to set against a complexity of each."""


def l0_of_images(sae: SAE[Any], batches: Iterable[torch.Tensor], *, chunk_size: int = CHUNK_SIZE) -> ImageL0:
    """L0 of the tokens of images, and of images as a whole.

    Args:
        sae: Any SAELens SAE.
        batches: Activations of shape (images, tokens, d_in).
        chunk_size: Tokens encoded at once; always whole images, so at least one.

    Raises:
        ValueError: If there are no images.
    """
    per_token, per_image = CountDistribution(), CountDistribution()
    means: list[torch.Tensor] = []
    for chunk, n_tokens in encode_whole_images(sae, batches, chunk_size):
        l0 = chunk.acts.l0().cpu()
        per_token.add(l0)
        per_image.add(mean_over_tokens(chunk.acts, n_tokens).l0())
        means.append(l0.double().unflatten(0, (-1, n_tokens)).mean(1))
    return ImageL0(l0_distribution(per_token), l0_distribution(per_image), torch.cat(means))


def l0_against_complexity(l0: torch.Tensor, complexity: torch.Tensor, n_bins: int = 10) -> L0AgainstComplexity:
    """Relate L0 to a complexity of the same inputs.

    Args:
        l0: L0 of each input, shape (n,), as `ImageL0.means`.
        complexity: Any measure, shape (n,): `compressed_size` of an image, the model's loss at a token, …
        n_bins: Bins of equal size for the curve; at most n.

    Raises:
        ValueError: If the two differ in length or have fewer than two inputs.
    """
    if l0.shape != complexity.shape or l0.ndim != 1 or len(l0) < 2:
        raise ValueError(
            f"l0 and complexity must both have shape (n,), n > 1, got {tuple(l0.shape)} and {tuple(complexity.shape)}"
        )
    l0, complexity = l0.double(), complexity.double()
    order = complexity.argsort(stable=True)
    bins = order.tensor_split(min(n_bins, len(l0)))
    return L0AgainstComplexity(
        n=len(l0),
        spearman=_correlation(_mean_ranks(l0), _mean_ranks(complexity)),
        pearson=_correlation(l0, complexity),
        bin_complexity=[complexity[i].mean().item() for i in bins],
        bin_l0=[l0[i].mean().item() for i in bins],
    )


def _mean_ranks(values: torch.Tensor) -> torch.Tensor:
    unique, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    assert len(unique) == len(last)
    return (last - (counts - 1) / 2)[inverse]


def _correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    spread = (x.pow(2).sum() * y.pow(2).sum()).sqrt()
    return (x @ y / spread).item() if spread > 0 else float("nan")
