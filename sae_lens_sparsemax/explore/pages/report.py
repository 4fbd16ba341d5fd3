"""All that is shown of one SAE, before it is written."""

from dataclasses import dataclass

import torch

from sae_lens_sparsemax.evaluation.naming import ConceptName
from sae_lens_sparsemax.explore.cofiring import Neighbours
from sae_lens_sparsemax.explore.images import ImageStream
from sae_lens_sparsemax.explore.statistics import ConceptStatistics
from sae_lens_sparsemax.explore.texts import TextStream
from sae_lens_sparsemax.explore.unembedding import TokenLogits


@dataclass
class SAEReport:
    """One SAE on one data set."""

    name: str
    """What it is called on the pages."""
    architecture: str
    """Under which it was trained."""
    stream: ImageStream | TextStream
    """What it was explored on."""
    statistics: ConceptStatistics
    """What was gathered."""
    norms: torch.Tensor
    """Norm of each decoder row, shape (d_sae,)."""
    near: Neighbours
    """Nearest concepts by the cosine of decoder rows."""
    cofiring: Neighbours
    """Nearest concepts by the tokens they share."""
    logits: TokenLogits | None = None
    """Tokens promoted and suppressed; None where there is no unembedding."""
    names: list[ConceptName | None] | None = None
    """A guess at a name of each concept; None where there is none."""
