import pytest
import torch

from sae_lens_sparsemax.explore.samples import LEVELS, SampleActs, TopExamples, drawn_order
from tests.support.streams import sparse

N_TOKENS, D_SAE = 4, 9


def random_acts(n_samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(n_samples, N_TOKENS, D_SAE, generator=generator)
    return acts * (torch.rand(acts.shape, generator=generator) < 0.2)


def collect(acts: torch.Tensor, k: int, score: str, batch_size: int) -> TopExamples:
    top = TopExamples(D_SAE, k, N_TOKENS)
    for first in range(0, len(acts), batch_size):
        part = acts[first : first + batch_size]
        found = SampleActs(sparse(part), N_TOKENS)
        top.add(found, found.mean if score == "mean" else found.peak, torch.arange(first, first + len(part)))
    return top


@pytest.mark.parametrize("score", ["mean", "max"])
@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_they_are_the_samples_of_highest_score(score, batch_size):
    acts, k = random_acts(50), 6
    top = collect(acts, k, score, batch_size)
    active = (acts != 0).any(1)
    scores = acts.abs().mean(1) if score == "mean" else acts.abs().amax(1)  # some are below zero
    for concept in range(D_SAE):
        samples = active[:, concept].nonzero().flatten().tolist()
        best = sorted(samples, key=lambda s: -scores[s, concept].item())[:k]
        assert top.sample[concept].tolist() == best + [-1] * (k - len(best))
        torch.testing.assert_close(top.score[concept, : len(best)], scores[best, concept])


def test_levels_give_back_the_activations_of_every_token():
    acts = random_acts(30)
    top = collect(acts, 5, "max", 8)
    for concept, place in (top.sample >= 0).nonzero().tolist():
        exact = acts[top.sample[concept, place], :, concept]
        restored = top.levels[concept, place] * top.peak[concept, place] / LEVELS
        torch.testing.assert_close(restored, exact, atol=exact.abs().max().item() / LEVELS, rtol=0)
        assert torch.equal(restored != 0, exact != 0)
        assert exact[top.peak_places()[concept, place]].abs() == exact.abs().max()


def test_a_draw_is_fair_and_does_not_depend_on_batches():
    acts = torch.ones(400, 1, D_SAE)
    drawn = {}
    for batch_size in (7, 400):
        top = TopExamples(D_SAE, 8, 1)
        for first in range(0, 400, batch_size):
            ids = torch.arange(first, min(first + batch_size, 400))
            found = SampleActs(sparse(acts[ids]), 1)
            top.add(found, drawn_order(found.concept, ids[found.sample]), ids)
        drawn[batch_size] = top.sample
    assert torch.equal(drawn[7], drawn[400])
    assert all(len(set(row)) == 8 for row in drawn[7].tolist()) and len(drawn[7].unique(dim=0)) == D_SAE
    # Of many pairs, each tenth of the numbers has its tenth.
    pairs = torch.cartesian_prod(torch.arange(100), torch.arange(1000))
    counts = torch.histc(drawn_order(pairs[:, 0], pairs[:, 1]), 10, 0, 2**24)
    assert (counts - 10_000).abs().max() < 400


def test_of_equal_scores_the_first_sample_stays():
    acts = torch.ones(5, N_TOKENS, D_SAE)
    assert collect(acts, 2, "max", 2).sample.tolist() == [[0, 1]] * D_SAE


def test_a_concept_with_few_samples_keeps_empty_places():
    acts = torch.zeros(3, N_TOKENS, D_SAE)
    acts[1, 2, 4] = 2.0
    top = collect(acts, 3, "max", 3)
    assert top.sample[4].tolist() == [1, -1, -1] and top.peak[4].tolist() == [2.0, 0.0, 0.0]
    assert (top.sample[[0, 8]] == -1).all()
