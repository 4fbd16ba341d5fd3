"""Everything that one pass over the data leaves about an SAE's concepts, in memory that does not grow with the data."""

import torch

from sae_lens_sparsemax.evaluation.monosemanticity import MonosemanticityAccumulator
from sae_lens_sparsemax.evaluation.reconstruction import ReconstructionAccumulator
from sae_lens_sparsemax.explore.cofiring import TokenSample
from sae_lens_sparsemax.explore.samples import (
    EncodedBatch,
    SampleActs,
    SampleBatch,
    SampleStream,
    TopExamples,
    drawn_order,
)
from sae_lens_sparsemax.models.encoding import SparseActs, mean_over_tokens
from sae_lens_sparsemax.settings.sentences import must_be

N_BINS = 128
_HALF = N_BINS // 2
MOST_OUTLIERS = 10_000


class ActivationHistograms:
    """Histograms over [-2^e, 2^e), each with the smallest whole e that holds all of its concept's activations.

    When a larger activation comes, e grows and neighbouring bins are added together. Bin edges are exact in
    floating point, so the result does not depend on the order or the batches in which activations arrive. At
    least a quarter of the bins lie between 0 and the largest activation.
    """

    def __init__(self, d_sae: int) -> None:
        self.counts = torch.zeros(d_sae, N_BINS, dtype=torch.int32)
        """Shape (d_sae, N_BINS)."""
        self.exponent = torch.full((d_sae,), torch.iinfo(torch.int16).min, dtype=torch.int32)
        """The e of each concept, shape (d_sae,)."""

    def add(self, col: torch.Tensor, value: torch.Tensor) -> None:
        """Add activations, both arguments of shape (nnz,): concept and value, on the CPU."""
        value = value.float()
        exponent = torch.frexp(value).exponent.int()
        self._widen(self.exponent.scatter_reduce(0, col, exponent, "amax"))
        # Multiplying by a power of two is exact, so an activation on an edge always falls to the same side.
        place = torch.ldexp(value.double(), 6 - self.exponent[col]).floor().long() + _HALF
        ones = torch.ones(len(col), dtype=torch.int32)
        self.counts.view(-1).index_add_(0, col * N_BINS + place, ones)

    def _widen(self, exponent: torch.Tensor) -> None:
        # After seven folds everything lies in the two middle bins, and further ones change nothing.
        folds = (exponent - self.exponent).clamp(max=7)
        while (wider := folds.nonzero().flatten()).numel():
            folded = torch.zeros(len(wider), N_BINS, dtype=torch.int32)
            folded[:, _HALF // 2 : _HALF // 2 + _HALF] = self.counts[wider].view(len(wider), _HALF, 2).sum(-1)
            self.counts[wider] = folded
            folds[wider] -= 1
        self.exponent = exponent

    def trimmed(self, concept: int) -> tuple[float, float, list[int]]:
        """Lower edge, bin width and counts of a concept's histogram, from its first to its last filled bin."""
        filled = self.counts[concept].nonzero().flatten()
        if not len(filled):
            return 0.0, 0.0, []
        first, last = int(filled[0]), int(filled[-1])
        width = 2.0 ** (int(self.exponent[concept]) - 6)
        return (first - _HALF) * width, width, self.counts[concept, first : last + 1].tolist()


class ClassProfile:
    """Images and activation of every class, for every concept; memory 8 bytes for each of n_classes x d_sae."""

    def __init__(self, n_classes: int, d_sae: int) -> None:
        self.n_images = torch.zeros(n_classes, dtype=torch.int64)
        """Images of each class, shape (n_classes,)."""
        self.active = torch.zeros(n_classes, d_sae, dtype=torch.int32)
        """Images of each class on which each concept is active, shape (n_classes, d_sae)."""
        self.mass = torch.zeros(n_classes, d_sae)
        """Mean sizes of its activations on these images added up, shape (n_classes, d_sae)."""

    def add(self, acts: SampleActs, labels: torch.Tensor) -> None:
        """Add images with their classes, shape (n_samples,); those of class -1 are in none."""
        d_sae = self.mass.shape[1]
        self.n_images += torch.bincount(labels[labels >= 0], minlength=len(self.n_images))
        label = labels[acts.sample]
        key = (label * d_sae + acts.concept)[label >= 0]
        self.active.view(-1).index_add_(0, key, torch.ones(len(key), dtype=torch.int32))
        self.mass.view(-1).index_add_(0, key, acts.mean[label >= 0])

    def share(self, concept: int) -> torch.Tensor:
        """Share of a concept's activation that falls to each class, shape (n_classes,); zeros if it never fires."""
        mass = self.mass[:, concept].double()
        return mass / mass.sum().clamp(min=torch.finfo(torch.float64).tiny)

    def entropy(self) -> torch.Tensor:
        """Entropy in bits of each concept's activation over the classes, shape (d_sae,); NaN if it never fires.

        0 is a concept of one class; log2 of the number of classes is one that is spread over them evenly.
        """
        total = self.mass.sum(0)
        entropy = torch.zeros_like(total)
        for mass in self.mass:  # a row at a time: the table may take hundreds of megabytes
            share = mass / total
            entropy -= torch.where(share > 0, share * share.log2(), 0)
        return torch.where(total > 0, entropy, torch.nan)


class Showcase:
    """All activations of the first few samples, for their own pages."""

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples
        self.ids = torch.zeros(0, dtype=torch.int64)
        """Ids of the samples, in order."""
        self.place = torch.zeros(0, dtype=torch.int64)
        """Which of these samples each entry belongs to, shape (nnz,)."""
        self.token = torch.zeros(0, dtype=torch.int64)
        """Token of each entry, shape (nnz,)."""
        self.concept = torch.zeros(0, dtype=torch.int64)
        """Concept of each entry, shape (nnz,)."""
        self.value = torch.zeros(0)
        """Activation of each entry, shape (nnz,)."""

    def add(self, placed: SparseActs, n_tokens: int, ids: torch.Tensor) -> None:
        """Add samples until there are enough; rows are the tokens of one sample after the other."""
        room = self.n_samples - len(self.ids)
        if room <= 0:
            return
        sample = placed.row // n_tokens
        mine = sample < room
        self.place = torch.cat([self.place, sample[mine] + len(self.ids)])
        self.token = torch.cat([self.token, placed.row[mine] % n_tokens])
        self.concept = torch.cat([self.concept, placed.col[mine]])
        self.value = torch.cat([self.value, placed.value[mine].float()])
        self.ids = torch.cat([self.ids, ids[:room]])


class ConceptStatistics:
    """Sums, histograms and best examples of every concept.

    Args:
        stream: What will be read.
        d_sae: Number of concepts.
        n_examples: Examples kept of each concept.
        n_showcase: Samples of which every activation is kept.
        n_drawn: Examples kept of each concept that are drawn by chance from all its samples; 0 for none.
        has_passes: Whether activations may come from later passes than the first.
    """

    def __init__(
        self,
        stream: SampleStream,
        d_sae: int,
        n_examples: int,
        n_showcase: int,
        n_drawn: int = 0,
        has_passes: bool = False,
    ) -> None:
        self.d_sae, self.n_tokens_each, self.position = d_sae, stream.n_tokens, 0
        self.n_samples = 0
        self.n_active = torch.zeros(d_sae, dtype=torch.int64)
        """Tokens on which each concept is active, shape (d_sae,)."""
        self.n_active_samples = torch.zeros(d_sae, dtype=torch.int64)
        """Samples on which each concept is active, shape (d_sae,)."""
        self.n_later = torch.zeros(d_sae, dtype=torch.int64) if has_passes else None
        """Tokens on which only a later pass than the first selected each concept, shape (d_sae,)."""
        self.sum = torch.zeros(d_sae, dtype=torch.float64)
        """Sum of each concept's activations, shape (d_sae,)."""
        self.highest, self.lowest = torch.full((d_sae,), -torch.inf), torch.full((d_sae,), torch.inf)
        """Largest and smallest activation of each concept, shape (d_sae,); infinite if it never fires."""
        self.histograms = ActivationHistograms(d_sae)
        self.examples = TopExamples(d_sae, n_examples, stream.n_tokens)
        """Images by the mean over all tokens, since patches share their subject; contexts by the strongest token."""
        self.by_highest = TopExamples(d_sae, n_examples, stream.n_tokens) if stream.kind == "image" else None
        """Images by their strongest token."""
        self.drawn = TopExamples(d_sae, n_drawn, stream.n_tokens) if n_drawn else None
        """A fair draw of the samples on which each concept is active."""
        self.n_outliers = 0
        """Tokens that do not count for their huge activations alone."""
        self.outliers = torch.zeros(0, dtype=torch.int64)
        """Ids of the first `MOST_OUTLIERS` of them."""
        self.cofiring = TokenSample(d_sae, stream.n_samples * stream.n_tokens)
        self.showcase = Showcase(n_showcase)
        self.reconstruction = ReconstructionAccumulator(d_sae)
        self.classes = ClassProfile(len(stream.class_names), d_sae) if stream.class_names else None
        self.monosemanticity = MonosemanticityAccumulator(d_sae, stream.d_embedding) if stream.d_embedding else None

    def add(self, batch: SampleBatch, encoded: EncodedBatch) -> None:
        """Add a batch of samples.

        Raises:
            ValueError: They have other tokens than the stream says, as images of several sizes have.
        """
        if encoded.placed.n_rows != len(batch.ids) * self.n_tokens_each:
            found = f"{encoded.placed.n_rows} of {len(batch.ids)} together"
            raise must_be("samples", f"of {self.n_tokens_each} tokens each", found)
        self.reconstruction.merge(encoded.reconstruction)
        col, value = encoded.kept.col, encoded.kept.value
        self.n_active += encoded.kept.concept_counts()
        if self.n_later is not None and encoded.later is not None:
            self.n_later += torch.bincount(encoded.later, minlength=self.d_sae)
        self.sum.index_add_(0, col, value.double())
        self.highest.scatter_reduce_(0, col, value.float(), "amax")
        self.lowest.scatter_reduce_(0, col, value.float(), "amin")
        self.histograms.add(col, value)
        self.cofiring.add(encoded.kept)
        self.showcase.add(encoded.placed, self.n_tokens_each, batch.ids)
        acts = SampleActs(encoded.placed, self.n_tokens_each)
        self.n_active_samples += torch.bincount(acts.concept, minlength=self.d_sae)
        self.examples.add(acts, acts.peak if self.by_highest is None else acts.mean, batch.ids)
        if self.by_highest is not None:
            self.by_highest.add(acts, acts.peak, batch.ids)
        if self.drawn is not None:
            self.drawn.add(acts, drawn_order(acts.concept, batch.ids[acts.sample]), batch.ids)
        if batch.outliers is not None:
            self.n_outliers += len(batch.outliers)
            self.outliers = torch.cat([self.outliers, batch.outliers])[:MOST_OUTLIERS]
        self.n_samples += len(batch.ids)
        if self.classes is not None and batch.labels is not None:
            self.classes.add(acts, batch.labels)
        if self.monosemanticity is not None and batch.embeddings is not None:
            self.monosemanticity.add(mean_over_tokens(encoded.placed, self.n_tokens_each), batch.embeddings)

    @property
    def all_examples(self) -> list[TopExamples]:
        """Each kind of examples that is kept, the strongest first."""
        return [kind for kind in (self.examples, self.by_highest, self.drawn) if kind is not None]

    @property
    def n_tokens(self) -> int:
        """Tokens that counted."""
        return self.reconstruction.l0.n

    def frequency(self) -> torch.Tensor:
        """Share of the tokens on which each concept is active, shape (d_sae,), float64."""
        return self.n_active.double() / max(1, self.n_tokens)

    def later_share(self) -> torch.Tensor | None:
        """Share of each concept's activations that only a later pass selected, shape (d_sae,); None for one pass."""
        return None if self.n_later is None else self.n_later.double() / self.n_active.clamp(min=1)

    def strongest_activation(self) -> torch.Tensor:
        """The activation of largest size of each concept, with its sign, shape (d_sae,); -inf if it never fires."""
        return torch.where(-self.lowest > self.highest, self.lowest, self.highest)

    def mean_activation(self) -> torch.Tensor:
        """Mean of each concept's activation where it is active, shape (d_sae,), float64; 0 if it never is."""
        return self.sum / self.n_active.clamp(min=1)
