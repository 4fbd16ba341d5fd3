"""What a data set is to the explorer: samples (images or contexts of text) of equally many tokens each.

And for every concept, the samples on which it is strongest, with its activation at each token.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import torch
from sae_lens import SAE

from sae_lens_sparsemax.data.order import Wanted, everything
from sae_lens_sparsemax.evaluation.reconstruction import ReconstructionAccumulator
from sae_lens_sparsemax.models.encoding import SparseActs, encode_chunks, first_passes, has_passes


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
    outliers: torch.Tensor | None = None
    """Ids of the tokens that do not count for their huge activations alone, shape (n_outliers,)."""


class SampleStream(Protocol):
    """Samples that can be read from any place on."""

    @property
    def kind(self) -> Literal["image", "text"]:
        """What its samples are."""
        ...

    batch_size: int
    """Samples of a batch, of which some may be missing."""
    n_samples: int
    """Samples that will be read, at most."""
    n_tokens: int
    """Tokens of a sample."""
    class_names: list[str]
    """Empty if samples have no classes."""
    d_embedding: int
    """Width of the embeddings by an independent encoder; 0 if there is none."""

    def batches(self, start: int, wanted: Wanted = everything) -> Iterator[tuple[SampleBatch, int]]:
        """Batches of `batch_size` from sample number `start` on, each with the number to go on with after it.

        Those that are not `wanted`, which is told the number of their first sample, are left out.
        """
        ...

    def identity(self) -> dict[str, dict[str, Any]]:
        """All that decides what is read, for JSON: the `samples`, which SAEs beside each other must share, and what is
        `read` of them."""
        ...


class EncodedBatch(NamedTuple):
    """What an SAE makes of a batch of samples."""

    reconstruction: ReconstructionAccumulator
    """Of the tokens that count."""
    kept: SparseActs
    """The activations; rows are the tokens that count."""
    placed: SparseActs
    """The same activations; rows are all tokens, sample after sample."""
    later: torch.Tensor | None = None
    """Concept of each activation that only a later pass than the first selected, where there are several passes."""


def encode_batch(sae: SAE[Any], batch: SampleBatch) -> EncodedBatch:
    """Encode the tokens of a batch that count, a chunk of them at a time."""
    n, n_tokens = batch.acts.shape[:2]
    flat = batch.acts.flatten(0, 1)
    place = torch.arange(n * n_tokens) if batch.keep is None else batch.keep.flatten().cpu().nonzero().flatten()
    reconstruction = ReconstructionAccumulator(sae.cfg.d_sae)
    row, col, value, later, start = [], [], [], [], 0
    for chunk in encode_chunks(sae, [flat if batch.keep is None else flat[place.to(flat.device)]]):
        acts = chunk.acts
        row.append(acts.row.cpu() + start)
        col.append(acts.col.cpu())
        value.append(acts.value.cpu())
        if has_passes(sae):
            first = first_passes(sae, chunk.sae_in)
            later.append(first.indices()[1, first.values() > 1])
        start += acts.n_rows
        reconstruction.add(chunk)
    d_sae = sae.cfg.d_sae
    if not row:
        none = torch.zeros(0, dtype=torch.int64)
        empty = SparseActs(none, none, torch.zeros(0), 0, d_sae)
        return EncodedBatch(reconstruction, empty, empty._replace(n_rows=n * n_tokens))
    kept = SparseActs(torch.cat(row), torch.cat(col), torch.cat(value), start, d_sae)
    placed = kept._replace(row=place[kept.row], n_rows=n * n_tokens)
    return EncodedBatch(reconstruction, kept, placed, torch.cat(later) if later else None)


_CONCEPTS_AT_ONCE = 1024
LEVELS = 127
"""Activations of an example are stored as whole numbers from -LEVELS to LEVELS, in units of its peak / LEVELS."""


class SampleActs:
    """The activations of some samples, as one entry per token and as scores of each (sample, concept) pair."""

    def __init__(self, acts: SparseActs, n_tokens: int) -> None:
        """Args:
        acts: Activations whose rows are the tokens of one sample after the other, `n_tokens` of each.
        n_tokens: Tokens of a sample.
        """
        self.row, self.col, self.value = acts.row.cpu(), acts.col.cpu(), acts.value.cpu().float()
        self.n_tokens, self.d_sae, self.n_samples = n_tokens, acts.d_sae, acts.n_rows // n_tokens
        key = torch.div(self.row, n_tokens, rounding_mode="floor") * acts.d_sae + self.col
        pairs, self.pair = key.unique(return_inverse=True)
        """`pair` is the pair that each entry belongs to, shape (nnz,)."""
        self.sample, self.concept = pairs // acts.d_sae, pairs % acts.d_sae
        """Sample, counted from 0, and concept of each pair; pairs are ordered by sample."""
        size = self.value.abs()  # of a concept that has both signs, what is far below zero is strong too
        self.mean = torch.zeros(len(pairs)).index_add_(0, self.pair, size) / n_tokens
        """Mean size over all tokens of the sample, of each pair."""
        self.peak = torch.zeros(len(pairs)).scatter_reduce_(0, self.pair, size, "amax")
        """Largest size on a token, of each pair."""


def drawn_order(concept: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """A number of 24 bits for each pair, as if by chance, but the same in every run and every division of the data.

    The samples of highest number are a fair draw of a concept's samples.

    Args:
        concept: Shape (n,), int64.
        sample: Number of the sample in the order of the data set, shape (n,), int64.
    """
    # The finaliser of splitmix64, with constants as the signed numbers that torch knows.
    x = sample * -7046029254386353131 + concept * -4417276706812531889
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return ((x ^ (x >> 31)) & 0xFFFFFF).float()


class TopExamples:
    """The k samples of highest score of every concept; of equal ones, those that came first."""

    def __init__(self, d_sae: int, k: int, n_tokens: int) -> None:
        self.sample = torch.full((d_sae, k), -1, dtype=torch.int64)
        """Sample of each example, best first, shape (d_sae, k); -1 where there are fewer than k."""
        self.score = torch.full((d_sae, k), -torch.inf)
        """Score of each example, shape (d_sae, k)."""
        self.peak = torch.zeros(d_sae, k)
        """Largest absolute activation in each example, shape (d_sae, k)."""
        self.levels = torch.zeros(d_sae, k, n_tokens, dtype=torch.int8)
        """Activation at each token in units of peak / LEVELS, shape (d_sae, k, n_tokens)."""

    def peak_places(self) -> torch.Tensor:
        """The first token on which each concept is strongest in each example, shape (d_sae, k)."""
        # Of not all at once: sizes take as much memory as what they are of.
        return torch.cat([levels.abs().argmax(-1) for levels in self.levels.split(_CONCEPTS_AT_ONCE)])

    def add(self, acts: SampleActs, scores: torch.Tensor, sample_ids: torch.Tensor) -> None:
        """Add samples.

        Args:
            acts: Their activations.
            scores: Of each pair in `acts`.
            sample_ids: Shape (n_samples,); they must grow from call to call.
        """
        k = self.sample.shape[1]
        better = (scores > self.score[acts.concept, -1]).nonzero().flatten()
        if not len(better):
            return
        concepts, local = acts.concept[better].unique(return_inverse=True)
        n = len(concepts)
        # Old examples first, then new ones, sorted by score within each concept: stable sorts keep that order.
        concept = torch.cat([torch.arange(n).repeat_interleave(k), local])
        score = torch.cat([self.score[concepts].flatten(), scores[better]])
        order = score.argsort(descending=True, stable=True)
        order = order[concept[order].argsort(stable=True)]
        counts = torch.bincount(concept, minlength=n)
        rank = torch.arange(len(order)) - (counts.cumsum(0) - counts)[concept[order]]
        kept = order[rank < k]
        place = torch.full((len(order),), -1, dtype=torch.int64)
        place[kept] = torch.arange(n * k)

        sample = torch.cat([self.sample[concepts].flatten(), sample_ids[acts.sample[better]]])
        peak = torch.cat([self.peak[concepts].flatten(), acts.peak[better]])
        levels = torch.zeros(n * k, self.levels.shape[2], dtype=torch.int8)
        old = kept[kept < n * k]
        levels[place[old]] = self.levels[concepts].flatten(0, 1)[old]
        self._fill(levels, acts, better, place[n * k :])
        self.sample[concepts] = sample[kept].view(n, k)
        self.score[concepts] = score[kept].view(n, k)
        self.peak[concepts] = peak[kept].view(n, k)
        self.levels[concepts] = levels.view(n, k, -1)

    @staticmethod
    def _fill(levels: torch.Tensor, acts: SampleActs, better: torch.Tensor, place: torch.Tensor) -> None:
        """Write the entries of those of the pairs `better` that have a place among the examples."""
        place_of_pair = torch.full((len(acts.peak),), -1, dtype=torch.int64)
        place_of_pair[better] = place
        goes_to = place_of_pair[acts.pair]
        entry = (goes_to >= 0).nonzero().flatten()
        relative = acts.value[entry] / acts.peak[acts.pair[entry]] * LEVELS
        # What is active must not round to zero.
        level = torch.where(relative > 0, relative.round().clamp(min=1), relative.round().clamp(max=-1))
        levels[goes_to[entry], acts.row[entry] % acts.n_tokens] = level.to(torch.int8)
