"""Everything that one pass over the data leaves about an SAE's concepts, in memory that does not grow with the data."""

import torch

from sae_lens_sparsemax.evaluation.monosemanticity import MonosemanticityAccumulator
from sae_lens_sparsemax.evaluation.pooling import mean_over_tokens
from sae_lens_sparsemax.evaluation.reconstruction import ReconstructionAccumulator
from sae_lens_sparsemax.explore.classes import ClassProfile
from sae_lens_sparsemax.explore.cofiring import TokenSample
from sae_lens_sparsemax.explore.examples import SampleActs, TopExamples
from sae_lens_sparsemax.explore.histograms import ActivationHistograms
from sae_lens_sparsemax.explore.samples import EncodedBatch, SampleBatch, SampleStream
from sae_lens_sparsemax.models.encoding import SparseActs


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
    """

    def __init__(self, stream: SampleStream, d_sae: int, n_examples: int, n_showcase: int) -> None:
        self.d_sae, self.n_tokens_each, self.position = d_sae, stream.n_tokens, 0
        self.n_samples = 0
        # Images are ranked as a whole, since patches share their subject; a context by its strongest token.
        self._score = "mean" if stream.kind == "image" else "max"
        self.n_active = torch.zeros(d_sae, dtype=torch.int64)
        """Tokens on which each concept is active, shape (d_sae,)."""
        self.n_active_samples = torch.zeros(d_sae, dtype=torch.int64)
        """Samples on which each concept is active, shape (d_sae,)."""
        self.sum = torch.zeros(d_sae, dtype=torch.float64)
        """Sum of each concept's activations, shape (d_sae,)."""
        self.highest = torch.full((d_sae,), -torch.inf)
        """Largest activation of each concept, shape (d_sae,); -inf if it never fires."""
        self.histograms = ActivationHistograms(d_sae)
        self.examples = TopExamples(d_sae, n_examples, stream.n_tokens)
        self.cofiring = TokenSample(d_sae, stream.n_samples * stream.n_tokens)
        self.showcase = Showcase(n_showcase)
        self.reconstruction = ReconstructionAccumulator(d_sae)
        self.classes = ClassProfile(len(stream.class_names), d_sae) if stream.class_names else None
        self.monosemanticity = MonosemanticityAccumulator(d_sae, stream.d_embedding) if stream.d_embedding else None

    def add(self, batch: SampleBatch, encoded: EncodedBatch) -> None:
        """Add a batch of samples."""
        for chunk in encoded.chunks:
            self.reconstruction.add(chunk)
        col, value = encoded.kept.col, encoded.kept.value
        self.n_active += encoded.kept.concept_counts()
        self.sum.index_add_(0, col, value.double())
        self.highest.scatter_reduce_(0, col, value.float(), "amax")
        self.histograms.add(col, value)
        self.cofiring.add(encoded.kept)
        self.showcase.add(encoded.placed, self.n_tokens_each, batch.ids)
        acts = SampleActs(encoded.placed, self.n_tokens_each, self._score)
        self.n_active_samples += torch.bincount(acts.concept, minlength=self.d_sae)
        self.examples.add(acts, batch.ids)
        self.n_samples += len(batch.ids)
        if self.classes is not None and batch.labels is not None:
            self.classes.add(acts, batch.labels)
        if self.monosemanticity is not None and batch.embeddings is not None:
            self.monosemanticity.add(mean_over_tokens(encoded.placed, self.n_tokens_each), batch.embeddings)

    @property
    def n_tokens(self) -> int:
        """Tokens that counted."""
        return self.reconstruction.l0.n

    def frequency(self) -> torch.Tensor:
        """Share of the tokens on which each concept is active, shape (d_sae,), float64."""
        return self.n_active.double() / max(1, self.n_tokens)

    def mean_activation(self) -> torch.Tensor:
        """Mean of each concept's activation where it is active, shape (d_sae,), float64; 0 if it never is."""
        return self.sum / self.n_active.clamp(min=1)
