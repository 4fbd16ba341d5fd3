import pytest
import torch

from sae_lens_sparsemax.explore import cofiring
from sae_lens_sparsemax.explore.cofiring import MIN_TOGETHER, TokenSample, cofiring_concepts
from tests.support.streams import sparse


def sample_of(acts: torch.Tensor, batch_size: int = 10) -> TokenSample:
    sample = TokenSample(acts.shape[-1], len(acts))
    for part in acts.split(batch_size):
        sample.add(sparse(part[:, None]))
    return sample


@pytest.mark.parametrize("pairs_at_a_time", [1, 300, 10**6])
def test_it_ranks_by_shared_tokens_over_tokens_of_either(monkeypatch, pairs_at_a_time):
    monkeypatch.setattr(cofiring, "_PAIRS_AT_A_TIME", pairs_at_a_time)
    acts = (torch.rand(200, 20, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    found = cofiring_concepts(sample_of(acts), 4, progress=False)
    on = acts.bool()
    for a in range(20):
        both = (on[:, [a]] & on).sum(0)
        jaccard = both / (on[:, [a]] | on).sum(0)
        jaccard[(both < MIN_TOGETHER) | (torch.arange(20) == a)] = 0
        torch.testing.assert_close(found.value[a], jaccard.topk(4).values)
        named = found.concept[a][found.concept[a] >= 0]
        torch.testing.assert_close(jaccard[named], found.value[a, : len(named)])


def test_pairs_seen_together_once_are_left_out():
    acts = torch.zeros(50, 3)
    acts[0, :2] = 1
    found = cofiring_concepts(sample_of(acts), 2, progress=False)
    assert (found.concept == -1).all() and (found.value == 0).all()


def test_of_many_tokens_a_regular_sample_is_held(monkeypatch):
    monkeypatch.setattr(cofiring, "MAX_TOKENS", 20)
    acts = torch.eye(100)  # token i has concept i
    for batch_size in (1, 7, 100):
        sample = sample_of(acts, batch_size)
        assert sample.n_tokens == 20 and sample.col.tolist() == list(range(0, 100, 5))
        assert sample.row.tolist() == list(range(20))


def test_a_sample_stops_growing_when_its_pairs_would_take_too_long_to_count(monkeypatch):
    monkeypatch.setattr(cofiring, "MAX_PAIRS", 250)
    sample = sample_of(torch.ones(100, 10), batch_size=1)
    assert sample.n_tokens == 3 and len(sample.col) == 30


def test_an_empty_sample_has_no_neighbours():
    found = cofiring_concepts(sample_of(torch.zeros(5, 4)), 2, progress=False)
    assert (found.concept == -1).all()
