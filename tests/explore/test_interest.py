"""What the table begins with, and the map."""

import sys

import pytest
import torch

from sae_lens_sparsemax.explore.gather import gather
from sae_lens_sparsemax.explore.interest import concept_map, interest
from tests.support.streams import RandomStream, dense_acts, inference_sae


def test_interest_is_the_product_of_its_shares():
    sae, stream = inference_sae(), RandomStream(n_classes=3)
    statistics = gather(sae, stream, n_examples=stream.n_samples, n_showcase=0, progress=False)
    acts = dense_acts(sae, stream)
    norms = sae.W_dec.detach().norm(dim=-1)
    found = interest(statistics, norms)
    fires = (acts != 0).any((0, 1))
    largest = acts.amax(1).masked_fill(~(acts != 0).any(1), torch.nan)
    strength = largest.nanmedian(0).values.nan_to_num(0) * norms
    for concept in fires.nonzero().flatten().tolist():
        mine = acts[..., concept][(acts[..., concept] != 0).any(1)]
        spread = mine.sum(1).square() / (stream.n_tokens * mine.square().sum(1))
        mass = torch.stack([mine.sum(1)[stream.labels[(acts[..., concept] != 0).any(1)] == k].sum() for k in range(3)])
        share = mass / mass.sum()
        clarity = 1 + (share * share.clamp(min=1e-30).log2()).sum() / torch.tensor(3.0).log2()
        expected = (
            max(0.0, 1 - (acts[..., concept] != 0).float().mean().item() / 0.1)
            * min(1.0, len(mine) / 10)
            * strength[concept] / (strength[concept] + strength[fires].median())
            * (1 - spread).mean() * clarity
        )  # fmt: skip
        assert found[concept].item() == pytest.approx(expected.item(), rel=0.02, abs=1e-6)
    assert (found[~fires] == 0).all() and (found > 0).any()


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_concept_that_is_strong_once_does_not_lead(kind):
    sae, stream = inference_sae(), RandomStream(kind=kind)
    statistics = gather(sae, stream, n_examples=6, n_showcase=0, progress=False)
    norms = sae.W_dec.detach().norm(dim=-1)
    before = interest(statistics, norms)
    order = before.argsort(descending=True)
    leader, other = order[0], order[5]
    # Strong once, as strong as ever in its other examples: what led before still leads, and by as much.
    statistics.highest[other] = 1000 * statistics.highest[leader]
    kept = statistics.examples if statistics.by_highest is None else statistics.by_highest
    kept.score[other, 0] = statistics.highest[other]
    torch.testing.assert_close(interest(statistics, norms), before)
    # Strong in all of them: it is stronger than it was.
    kept.score[other] = statistics.highest[other]
    assert interest(statistics, norms)[other] > before[other]


def test_a_concept_of_few_examples_is_as_strong_as_the_lower_of_the_middle_ones():
    sae, stream = inference_sae(), RandomStream(kind="text")
    statistics = gather(sae, stream, n_examples=6, n_showcase=0, progress=False)
    norms = sae.W_dec.detach().norm(dim=-1)
    concept = int(interest(statistics, norms).argmax())
    examples = statistics.examples
    examples.sample[concept, 2:], examples.score[concept, 2:] = -1, -torch.inf
    examples.levels[concept, 2:] = 0
    two = interest(statistics, norms)[concept].item()
    examples.score[concept, 0] *= 1000
    assert interest(statistics, norms)[concept].item() == pytest.approx(two) and two > 0
    examples.score[concept, 1] *= 1000
    assert interest(statistics, norms)[concept].item() > two


@pytest.mark.parametrize("has_sklearn", [True, False])
def test_the_map_puts_together_what_points_the_same_way_and_is_the_same_each_time(monkeypatch, has_sklearn):
    if has_sklearn:
        pytest.importorskip("sklearn")
    else:
        monkeypatch.setitem(sys.modules, "sklearn", None)
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.eye(3, 8)
    rows = torch.cat([centres[k] + torch.randn(20, 8, generator=generator) / 4 for k in range(3)])
    promise = torch.ones(60)
    promise[7], promise[:5] = 0, 0.5
    found = concept_map(rows, promise, 56)
    assert found.concept.tolist() == [0, 1, 5, 6, *range(8, 60)]
    assert 7 not in found.concept and torch.equal(found.place, concept_map(rows, promise, 56).place)
    distance = torch.cdist(found.place, found.place)
    distance.fill_diagonal_(torch.inf)
    assert (found.concept[distance.argmin(1)] // 20 == found.concept // 20).all()
    assert ("t-SNE of" in found.method) == has_sklearn
    assert concept_map(rows, torch.zeros(60)).place.shape == (0, 2)
