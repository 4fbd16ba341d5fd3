import torch

from sae_lens_sparsemax.explore import decoder
from sae_lens_sparsemax.explore.decoder import nearest_concepts


def test_neighbours_are_those_of_highest_cosine(monkeypatch):
    monkeypatch.setattr(decoder, "_BLOCK", 8)
    rows = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    found = nearest_concepts(rows, 5, progress=False)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).fill_diagonal_(-2)
    best = cosine.topk(5)
    assert torch.equal(found.concept, best.indices)
    torch.testing.assert_close(found.value, best.values)


def test_a_row_of_zeros_is_near_nothing():
    rows = torch.randn(4, 3)
    rows[2] = 0
    found = nearest_concepts(rows, 3, progress=False)
    assert found.concept[2].tolist() == [-1, -1, -1]
    assert not (found.concept == 2).any() and (found.concept[0] >= 0).sum() == 2
