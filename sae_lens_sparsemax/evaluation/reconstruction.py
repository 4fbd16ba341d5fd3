"""How well an SAE reconstructs activations, and how sparsely.

Where sources differ in what they call "NMSE" or "FVU", each variant has its own name here:

- `nmse` = Σ‖x − x̂‖² / Σ‖x‖²
- `fvu` = Σ‖x − x̂‖² / Σ‖x − mean‖², and `explained_variance` = 1 − `fvu` as in SAELens; the mean is that of all tokens
  measured, which in the log of a training are those of one step
- `explained_variance_legacy`, in SAELens's results and log alone = mean over tokens of 1 − ‖x − x̂‖² / ‖x − mean‖²
- `fvu_per_sample` = mean over tokens of var(x − x̂) / var(x), variances over the coordinates (MSAE)
- `nmse_batchtopk` = mean squared error in the space of standardised tokens (BatchTopK)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.evaluation.streaming import CountDistribution, RunningMean, TotalVariance
from sae_lens_sparsemax.models.encoding import CHUNK_SIZE, EncodedChunk, encode_chunks, tokens_2d

EXPLAINED_VARIANCE = "explained variance (1 − FVU)"
"""What `explained_variance` is called wherever it is shown."""
RECONSTRUCTION = {
    "explained_variance": EXPLAINED_VARIANCE,
    "fvu": "FVU, Σ‖x − x̂‖² / Σ‖x − mean‖²",
    "fvu_per_sample": "FVU per sample, mean of var(x − x̂) / var(x)",
    "nmse": "NMSE, Σ‖x − x̂‖² / Σ‖x‖²",
    "cosine_similarity": "cosine similarity (CS)",
    "zero_fraction": "zero fraction",
    "dead_fraction": "dead fraction",
}
"""What measures of reconstruction are called in tables of one SAE."""

# Added to the standard deviation by the BatchTopK code, so that constant tokens stay finite.
STANDARDISATION_EPSILON = 1e-5


@dataclass(frozen=True)
class ReconstructionMetrics:
    """Reconstruction and sparsity of one SAE on one set of tokens."""

    n_tokens: int
    """Tokens evaluated."""
    explained_variance: float
    """1 - `fvu`."""
    fvu: float
    """Fraction of variance unexplained over the whole set."""
    fvu_per_sample: float
    """Mean over tokens of the fraction of each token's own variance that is unexplained."""
    nmse: float
    """Squared error over squared norm."""
    mse: float
    """Mean over tokens of ‖x - x̂‖², summed over coordinates."""
    cosine_similarity: float
    """Mean cosine of x and x̂; a zero vector has cosine 0 with everything."""
    l0: float
    """Mean number of active concepts per token."""
    l0_p5: float
    """5th percentile over tokens."""
    l0_p50: float
    """Median over tokens."""
    l0_p95: float
    """95th percentile over tokens."""
    zero_fraction: float
    """Fraction of the (token, concept) activations that are zero."""
    dead_fraction: float
    """Fraction of the concepts that are active on none of the tokens."""


class ReconstructionAccumulator:
    """Collects `ReconstructionMetrics` chunk by chunk; float64 throughout."""

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self.squared_error = RunningMean()
        self.squared_norm = RunningMean()
        self.cosine = RunningMean()
        self.fvu_per_sample = RunningMean()
        self.variance = TotalVariance()
        self.l0 = CountDistribution()
        self.ever_active = torch.zeros(d_sae, dtype=torch.bool)

    def add(self, chunk: EncodedChunk) -> None:
        """Add one chunk of tokens."""
        x, x_hat = chunk.sae_in.double(), chunk.sae_out.double()
        error = x - x_hat
        self.squared_error.add(error.pow(2).sum(-1))
        self.squared_norm.add(x.pow(2).sum(-1))
        self.cosine.add(torch.nn.functional.cosine_similarity(x, x_hat, dim=-1))
        variance = x.var(-1, correction=0)
        # A token whose coordinates are all equal has no variance to explain.
        varies = variance > 0
        self.fvu_per_sample.add(error.var(-1, correction=0)[varies] / variance[varies])
        self.variance.add(x)
        self.l0.add(chunk.acts.l0())
        self.ever_active |= chunk.acts.concept_counts().cpu() > 0

    def merge(self, other: "ReconstructionAccumulator") -> None:
        """Add all that was added to another of these."""
        for name in ("squared_error", "squared_norm", "cosine", "fvu_per_sample", "variance", "l0"):
            getattr(self, name).merge(getattr(other, name))
        self.ever_active |= other.ever_active

    def result(self) -> ReconstructionMetrics:
        """The metrics of everything added; raises `ValueError` if that is nothing."""
        n = self.squared_error.count
        if n == 0:
            raise ValueError("there were no tokens to evaluate the SAE on")
        total_variance = self.variance.sum_of_squares
        fvu = self.squared_error.sum / total_variance if total_variance > 0 else float("nan")
        squared_norm = self.squared_norm.sum
        return ReconstructionMetrics(
            n_tokens=n,
            explained_variance=1 - fvu,
            fvu=fvu,
            fvu_per_sample=self.fvu_per_sample.mean(),
            nmse=self.squared_error.sum / squared_norm if squared_norm > 0 else float("nan"),
            mse=self.squared_error.mean(),
            cosine_similarity=self.cosine.mean(),
            l0=self.l0.mean(),
            l0_p5=self.l0.percentile(5),
            l0_p50=self.l0.percentile(50),
            l0_p95=self.l0.percentile(95),
            zero_fraction=1 - self.l0.mean() / self.d_sae,
            dead_fraction=1 - self.ever_active.double().mean().item(),
        )


def merged_accumulators(parts: list[ReconstructionAccumulator]) -> ReconstructionAccumulator:
    """Of everything that was added to the parts."""
    whole = ReconstructionAccumulator(parts[0].d_sae)
    for part in parts:
        whole.merge(part)
    return whole


def evaluate_reconstruction(
    sae: SAE[Any],
    batches: Iterable[torch.Tensor],
    *,
    chunk_size: int = CHUNK_SIZE,
) -> ReconstructionMetrics:
    """Evaluate an SAE on batches of activations of shape (..., d_in).

    Args:
        sae: Any SAELens SAE, inference or training form.
        batches: The activations, as the SAE expects them (not scaled). Iterated once.
        chunk_size: Tokens encoded at once.

    Raises:
        ValueError: If there are no tokens, or they do not have the width of the SAE.
    """
    accumulator = ReconstructionAccumulator(sae.cfg.d_sae)
    for chunk in encode_chunks(sae, batches, chunk_size):
        accumulator.add(chunk)
    return accumulator.result()


def evaluate_nmse_batchtopk(
    sae: SAE[Any],
    batches: Iterable[torch.Tensor],
    *,
    chunk_size: int = CHUNK_SIZE,
    progress: bool = True,
) -> float:
    """Mean squared error over tokens and coordinates of standardised tokens, which the SAE sees as its input.

    Each token has the mean of its d_in coordinates subtracted and is divided by their unbiased standard
    deviation plus 1e-5. This is the "NMSE" of the BatchTopK code, and only means something for an SAE trained
    on such input.

    Args:
        sae: Any SAELens SAE.
        batches: Raw activations of shape (..., d_in), iterated once.
        chunk_size: Tokens encoded at once.
        progress: Whether to show a progress bar over batches.
    """
    error = RunningMean()
    bar = tqdm(batches, desc="NMSE (BatchTopK)", disable=not progress, leave=False)
    for chunk in encode_chunks(sae, _standardised(bar), chunk_size):
        error.add((chunk.sae_in.double() - chunk.sae_out.double()).pow(2))
    return error.mean()


def _standardised(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    for batch in batches:
        x = tokens_2d(batch)
        centred = x - x.mean(-1, keepdim=True)
        yield centred / (x.std(-1, keepdim=True) + STANDARDISATION_EPSILON)
