"""Which concepts to look at first, and where they lie beside each other on a map."""

import importlib.util
from typing import Any, NamedTuple

import torch

from sae_lens_sparsemax.evaluation.monosemanticity import MIN_IMAGES
from sae_lens_sparsemax.explore.failures import FREQUENT
from sae_lens_sparsemax.explore.statistics import ConceptStatistics

MOST_ON_MAP = 2_000
"""Points that a page draws and t-SNE places within seconds."""
_PERPLEXITY = 30.0
_BY_TSNE = (
    "t-SNE of the cosines of their decoder rows: what lies together points the same way, while distances across the "
    "map say little"
)
_BY_COMPONENTS = (
    "the two first principal components of their decoder rows, which show little of how they differ; with scikit-learn "
    "installed, t-SNE puts together what points the same way"
)
# Concepts whose examples are looked at at a time.
_BLOCK = 1024


def interest(statistics: ConceptStatistics, norms: torch.Tensor) -> torch.Tensor:
    """How much each concept promises to him who looks at it first, from 0 to 1.

    The product of five shares: rarity, 1 less its frequency over `FREQUENT`; evidence, its samples over `MIN_IMAGES`;
    strength s / (s + median of s over the concepts that fire) with s = the median, over its strongest kept examples, of
    the largest activation in each x norm of the decoder row; concentration, 1 less the share of a sample's tokens that
    its activation is spread over, on average over its examples; and, where images have classes, clarity, 1 less the
    entropy over them in units of its maximum. Of an even number the lower of the two middle values is the median.

    Args:
        statistics: What was gathered.
        norms: Norm of each decoder row, shape (d_sae,).

    Returns:
        Shape (d_sae,); 0 for what never fired.
    """
    alive = statistics.n_active > 0
    rarity = (1 - statistics.frequency() / FREQUENT).clamp(min=0)
    evidence = (statistics.n_active_samples / MIN_IMAGES).clamp(max=1)
    strength = _strength(statistics) * norms
    middle = strength[alive].median() if alive.any() else torch.ones(())
    found = rarity * evidence * strength / (strength + middle).clamp(min=torch.finfo(strength.dtype).tiny)
    found *= torch.cat([_concentration(levels) for levels in statistics.examples.levels.split(_BLOCK)])
    if statistics.classes is not None and len(statistics.classes.n_images) > 1:
        most = torch.tensor(float(len(statistics.classes.n_images))).log2()
        found *= 1 - (statistics.classes.entropy() / most).clamp(0, 1).nan_to_num(1)
    return torch.where(alive, found, 0)


def _strength(statistics: ConceptStatistics) -> torch.Tensor:
    """Median of the largest activations in each concept's strongest examples, shape (d_sae,); 0 where there are none.

    The largest activation of all would be led by concepts that are strong once and weak ever after.
    """
    examples = statistics.examples if statistics.by_highest is None else statistics.by_highest
    largest = torch.where(examples.sample >= 0, examples.score, torch.nan)
    return largest.nanmedian(-1).values.nan_to_num(0)


def _concentration(levels: torch.Tensor) -> torch.Tensor:
    """1 less (sum |a|)^2 / (n sum a^2) of the tokens' activations a, shape (n, k, n_tokens), over the k examples."""
    size = levels.float().abs()
    used = size.sum(-1) > 0
    spread = size.sum(-1).square() / (levels.shape[-1] * size.square().sum(-1)).clamp(min=1)
    return ((1 - spread) * used).sum(-1) / used.sum(-1).clamp(min=1)


class ConceptMap(NamedTuple):
    """Concepts in two dimensions."""

    concept: torch.Tensor
    """Those on the map, shape (n,)."""
    place: torch.Tensor
    """Shape (n, 2)."""
    method: str
    """How they were placed and what that says, as a sentence goes on after "Placed by"."""


@torch.no_grad()
def concept_map(rows: torch.Tensor, interest: torch.Tensor, n: int = MOST_ON_MAP) -> ConceptMap:
    """The n most interesting concepts, near each other where their decoder rows point the same way.

    By scikit-learn's t-SNE of their cosine distances, begun at the principal components and so the same each time;
    where scikit-learn is not installed, by the two first principal components of the rows' directions.

    Args:
        rows: Decoder, shape (d_sae, d_in).
        interest: Of each concept, shape (d_sae,); those of 0 are left out.
        n: At most so many.
    """
    concept = interest.argsort(descending=True, stable=True)[:n]
    concept = concept[(interest[concept] > 0)].sort().values
    unit = torch.nn.functional.normalize(rows[concept.to(rows.device)].float(), dim=-1).cpu()
    # Principal components are a rotation, after which two columns are the map's beginning.
    centred = unit - unit.mean(0)
    place = torch.zeros(len(concept), 2)
    if len(concept) > 2:
        components = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
        place[:, : len(components)] = centred @ components.T
    if len(concept) < 5 or importlib.util.find_spec("sklearn") is None:
        return ConceptMap(concept, place, _BY_COMPONENTS)
    from sklearn.manifold import TSNE  # type: ignore[import-not-found]  an extra

    begin: Any = (1e-4 * place / place[:, 0].std().clamp(min=1e-12)).numpy()
    perplexity = min(_PERPLEXITY, (len(concept) - 1) / 3)
    tsne = TSNE(metric="cosine", init=begin, perplexity=perplexity, random_state=0)
    return ConceptMap(concept, torch.from_numpy(tsne.fit_transform(unit.numpy())), _BY_TSNE)
