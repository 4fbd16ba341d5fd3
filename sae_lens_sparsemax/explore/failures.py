"""Where an SAE failed, or seems to have: concepts that look alike, that have no clear pattern, that fire often."""

from typing import NamedTuple

import torch

from sae_lens_sparsemax.evaluation.monosemanticity import MIN_IMAGES
from sae_lens_sparsemax.explore.cofiring import Neighbours
from sae_lens_sparsemax.explore.statistics import ConceptStatistics

FREQUENT = 0.1
"""A concept on more than this share of the tokens seldom means one thing."""


class AlikePair(NamedTuple):
    """Two concepts that look alike, as the page of failures takes them."""

    first: int
    second: int
    cosine: float
    """Of their decoder rows."""
    n_shared: int
    """Examples they have in common."""
    overlap: float | None
    """Share of the tokens of either on which both fire; None if the second is not among the first's co-firing ones."""


def alike_pairs(statistics: ConceptStatistics, near: Neighbours, cofiring: Neighbours, n: int) -> list[AlikePair]:
    """The n pairs of active concepts with the highest cosine of their decoder rows, each pair once."""
    alive = statistics.n_active > 0
    first = torch.arange(len(alive)).repeat_interleave(near.concept.shape[1])
    second, cosine = near.concept.flatten(), near.value.flatten()
    usable = (second >= 0) & alive[first] & alive[second.clamp(min=0)]
    # A pair that is in both concepts' lists is taken from the lower one's.
    d_sae = len(alive)
    key = torch.minimum(first, second) * d_sae + torch.maximum(first, second)
    order = torch.where(usable, cosine, -torch.inf).argsort(descending=True, stable=True)
    found: dict[int, AlikePair] = {}
    for place in order.tolist():
        if len(found) == n or not usable[place]:
            break
        low, high = divmod(int(key[place]), d_sae)
        if int(key[place]) in found:
            continue
        shared = set(statistics.examples.sample[low].tolist()) & set(statistics.examples.sample[high].tolist()) - {-1}
        both = (cofiring.concept[low] == high).nonzero().flatten()
        overlap = cofiring.value[low, both[0]].item() if len(both) else None
        found[int(key[place])] = AlikePair(low, high, cosine[place].item(), len(shared), overlap)
    return list(found.values())


def unclear_by_entropy(statistics: ConceptStatistics, n: int) -> list[int]:
    """The n concepts that are spread most evenly over the classes, of those on at least ten images."""
    assert statistics.classes is not None
    entropy = statistics.classes.entropy().nan_to_num(-1)
    entropy[statistics.n_active_samples < MIN_IMAGES] = -1
    best = entropy.argsort(descending=True, stable=True)[:n]
    return best[entropy[best] >= 0].tolist()


def unclear_by_tokens(
    statistics: ConceptStatistics, peak_tokens: torch.Tensor, n: int
) -> tuple[list[int], torch.Tensor]:
    """The n concepts whose examples peak on the most different tokens, of those in at least ten contexts.

    Of equally many, those on the most tokens come first.

    Args:
        statistics: What was gathered.
        peak_tokens: Token id at the peak of each example, shape (d_sae, k); -1 where there is no example.
        n: How many.

    Returns:
        The concepts, and the number of different tokens of every concept.
    """
    ordered = peak_tokens.sort(dim=-1).values
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    distinct = (new & (ordered >= 0)).sum(-1)
    score = distinct + statistics.frequency()
    score[statistics.n_active_samples < MIN_IMAGES] = -1
    best = score.argsort(descending=True, stable=True)[:n]
    return best[score[best] >= 0].tolist(), distinct


def frequent_concepts(statistics: ConceptStatistics, n: int) -> list[int]:
    """Up to n concepts that are active on more than a tenth of the tokens, most frequent first."""
    frequency = statistics.frequency()
    order = frequency.argsort(descending=True, stable=True)[:n]
    return order[frequency[order] > FREQUENT].tolist()


def dead_concepts(statistics: ConceptStatistics, n: int) -> list[int]:
    """The first n concepts that never fired."""
    return (statistics.n_active == 0).nonzero().flatten()[:n].tolist()
