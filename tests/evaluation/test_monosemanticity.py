import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sae_lens_sparsemax.evaluation.monosemanticity import MonosemanticityAccumulator, evaluate_monosemanticity
from sae_lens_sparsemax.models.encoding import sparse_acts


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def double_sum(acts, embeddings):
    """The definition: min-max scaling, then every pair of images."""
    low, high = acts.min(0).values, acts.max(0).values
    a = (acts - low) / (high - low)
    e = embeddings / embeddings.norm(dim=-1, keepdim=True)
    top, bottom = torch.zeros(acts.shape[1]).double(), torch.zeros(acts.shape[1]).double()
    for i in range(len(a)):
        for j in range(i + 1, len(a)):
            top += a[i] * a[j] * (e[i] @ e[j])
            bottom += a[i] * a[j]
    return torch.where(bottom > 0, top / bottom, torch.nan)


def accumulated(acts, embeddings, batch):
    accumulator = MonosemanticityAccumulator(acts.shape[1], embeddings.shape[1])
    for a, e in zip(acts.split(batch), embeddings.split(batch), strict=True):
        accumulator.add(sparse_acts(a), e)
    return accumulator


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_scores_equal_the_double_sum_over_pairs(batch):
    acts, embeddings = random(30, 9).relu(), random(30, 6, seed=1)
    acts[:, 0] = random(30, seed=2).abs() + 1  # active on every image: its minimum is not zero
    acts[:, 1] = random(30, seed=3)  # negative activations, as AbsTopK has
    acts[:, 2] = -acts[:, 2]  # never positive
    scores = accumulated(acts, embeddings, batch).scores()
    assert torch.allclose(scores, double_sum(acts, embeddings), rtol=1e-9, atol=1e-12)


def test_neurons_without_weight_have_no_score():
    acts, embeddings = torch.zeros(20, 4, dtype=torch.float64), random(20, 6)
    acts[3, 1] = 0.7  # one image alone makes no pair
    acts[:, 2] = 0.3  # equal everywhere: nothing is left after scaling
    acts[:12, 3] = 0.5
    accumulator = accumulated(acts, embeddings, 6)
    assert accumulator.scores().isnan().tolist() == [True, True, True, False]
    result = accumulator.result()
    assert (result.n_images, result.n_scored, result.n_scored_on_10_images) == (20, 1, 1)
    assert result.mean == result.max == result.max_on_10_images


def test_one_kind_of_image_gives_one_and_opposite_kinds_cancel():
    direction = random(6)
    acts = torch.ones(40, 2, dtype=torch.float64)
    acts[20:, 0] = 0
    embeddings = torch.cat([direction.expand(20, 6), -direction.expand(20, 6)])
    acts[39, 1] = 0
    scores = accumulated(acts, embeddings, 40).scores()
    assert scores[0] == pytest.approx(1)
    assert scores[1] == pytest.approx(double_sum(acts, embeddings)[1].item())


def test_tokens_are_averaged_and_neurons_on_few_images_reported_apart():
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=5, d_sae=16, dtype="float64"))
    with torch.no_grad():
        sae.b_enc += torch.linspace(-2.5, 1, 16)
    x, embeddings = random(25, 4, 5), random(25, 7, seed=5)
    with torch.no_grad():
        acts = sae.encode(x).mean(1)
    expected = double_sum(acts, embeddings)
    often = expected[((acts != 0).sum(0) >= 10) & ~expected.isnan()]
    pairs = list(zip(x.split(10), embeddings.split(10), strict=True))
    result = evaluate_monosemanticity(sae, pairs, chunk_size=9)
    assert result.mean == pytest.approx(expected.nanmean().item())
    assert result.mean_on_10_images == pytest.approx(often.mean().item())
    assert result.max_on_10_images == pytest.approx(often.max().item())
    assert 0 < result.n_scored_on_10_images < result.n_scored


def test_mismatched_and_zero_embeddings_are_refused():
    accumulator = MonosemanticityAccumulator(3, 2)
    with pytest.raises(ValueError, match="4 images, but 5 embeddings"):
        accumulator.add(sparse_acts(torch.ones(4, 3)), torch.ones(5, 2))
    with pytest.raises(ValueError, match="zero, so it has no cosine"):
        accumulator.add(sparse_acts(torch.ones(4, 3)), torch.zeros(4, 2))
