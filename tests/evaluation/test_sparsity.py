import pytest
import scipy.stats
import torch
import yaml
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE
from sae_lens.saes.topk_sae import TopKSAEConfig

from sae_lens_sparsemax.compare.suggest_k import matched_settings, write_matched_settings
from sae_lens_sparsemax.data.labelled_images import compressed_size
from sae_lens_sparsemax.evaluation.sparsity import l0_against_complexity, l0_of_images


@pytest.fixture
def sae():
    torch.manual_seed(0)
    return StandardSAE(StandardSAEConfig(d_in=6, d_sae=18))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_distribution_counts_concepts_of_tokens_or_the_union_over_an_image(sae):
    x = random(15, 7, 6)
    with torch.no_grad():
        active = sae.encode(x) != 0
    tokens, images, _ = l0_of_images(sae, x.split(4), chunk_size=9)
    assert tokens.counts == active.sum(-1).flatten().bincount().tolist()
    assert (tokens.n, tokens.max) == (105, int(active.sum(-1).max()))
    assert images.counts == active.any(1).sum(-1).bincount().tolist()
    assert images.mean == pytest.approx(active.any(1).sum(-1).double().mean().item())


def test_topk_does_not_vary_and_its_correlations_are_undefined():
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=6, d_sae=18, k=3))
    with torch.no_grad():
        sae.b_enc += 5  # all pre-activations positive, so that the ReLU cuts none of the k
    l0 = l0_of_images(sae, [random(50, 1, 6)])
    assert l0.per_token.std == 0
    against = l0_against_complexity(l0.means, random(50, seed=1))
    assert against.spearman != against.spearman and against.pearson != against.pearson


def test_correlations_with_complexity_equal_scipys_and_bins_hold_equal_numbers(sae):
    x = random(40, 5, 6)
    l0 = l0_of_images(sae, x.split(7)).means
    with torch.no_grad():
        assert torch.equal(l0, (sae.encode(x) != 0).sum(-1).double().mean(1))
    complexity = (l0 + random(40, seed=2)).round()  # with ties
    result = l0_against_complexity(l0, complexity, n_bins=8)
    assert result.spearman == pytest.approx(scipy.stats.spearmanr(l0, complexity).statistic)
    assert result.pearson == pytest.approx(scipy.stats.pearsonr(l0, complexity).statistic)
    assert result.bin_complexity == sorted(result.bin_complexity)
    assert sum(result.bin_l0) / 8 == pytest.approx(l0.mean().item())
    with pytest.raises(ValueError, match=r"got \(40,\) and \(39,\)"):
        l0_against_complexity(l0, complexity[1:])


def test_compressed_size_orders_flat_smooth_and_noisy_images():
    flat = torch.zeros(3, 32, 32, dtype=torch.uint8)
    smooth = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32).clone()
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert compressed_size(flat) < compressed_size(smooth) < compressed_size(noise)
    with pytest.raises(ValueError, match="uint8"):
        compressed_size(flat.float())


def test_matched_settings_differ_only_in_the_sae_and_train_in_saelens(tmp_path):
    settings = {
        "lr": 4e-4,
        "training_tokens": 1000,
        "sae": {"architecture": "sparsemax", "d_in": 6, "d_sae": 48, "dtype": "float32", "structure": "mlp"},
    }
    paths = write_matched_settings(settings, 12.6, tmp_path)
    topk, batchtopk = (yaml.safe_load(path.read_text()) for path in paths)
    assert topk["sae"] == {"architecture": "topk", "d_in": 6, "d_sae": 48, "dtype": "float32", "k": 13}
    assert batchtopk["sae"]["k"] == 12.6
    assert topk["lr"] == settings["lr"] and topk["training_tokens"] == 1000
    with pytest.raises(ValueError, match=r"between 1 and d_sae = 48, got 0\.3"):
        matched_settings(settings, 0.3)
    with pytest.raises(ValueError, match="no `sae`"):
        matched_settings({"lr": 1}, 3)
