from types import SimpleNamespace
from typing import Any

import torch

from sae_lens_sparsemax.explore.cofiring import Neighbours
from sae_lens_sparsemax.explore.failures import (
    alike_pairs,
    dead_concepts,
    frequent_concepts,
    unclear_by_entropy,
    unclear_by_tokens,
)
from sae_lens_sparsemax.explore.weights import nearest_concepts


def statistics(**fields: Any) -> Any:
    defaults = {"n_active": torch.tensor([5, 0, 40, 9]), "n_active_samples": torch.tensor([12, 0, 30, 9])}
    examples = SimpleNamespace(sample=torch.tensor([[1, 2, 3], [-1, -1, -1], [3, 2, 8], [4, 5, -1]]))
    frequency = torch.tensor([0.05, 0.0, 0.4, 0.09], dtype=torch.float64)
    return SimpleNamespace(**{**defaults, "examples": examples, "frequency": lambda: frequency, **fields})


def test_pairs_come_once_by_cosine_and_without_dead_concepts():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    together = Neighbours(torch.tensor([[2], [-1], [0], [-1]]), torch.tensor([[0.3], [0.0], [0.3], [0.0]]))
    pairs = alike_pairs(statistics(), nearest_concepts(rows, 3, progress=False), together, 10)
    assert [(p.first, p.second) for p in pairs] == [(0, 2), (2, 3), (0, 3)]
    assert pairs[0].n_shared == 2 and abs(pairs[0].overlap - 0.3) < 1e-6 and pairs[1].overlap is None
    assert len(alike_pairs(statistics(), nearest_concepts(rows, 3, progress=False), together, 1)) == 1


def test_the_concepts_spread_most_evenly_are_unclear_if_they_have_enough_images():
    entropy = torch.tensor([1.0, torch.nan, 2.0, 3.0])  # concept 3 is on nine images
    classes = SimpleNamespace(entropy=lambda: entropy)
    assert unclear_by_entropy(statistics(classes=classes), 5) == [2, 0]


def test_concepts_that_peak_on_many_tokens_are_unclear():
    peaks = torch.tensor([[7, 7, 8], [-1, -1, -1], [1, 2, 3], [4, 5, -1]])
    found, distinct = unclear_by_tokens(statistics(), peaks, 5)
    assert found == [2, 0] and distinct.tolist() == [2, 0, 3, 2]


def test_frequent_and_dead_concepts():
    assert frequent_concepts(statistics(), 5) == [2]
    assert dead_concepts(statistics(), 5) == [1]
