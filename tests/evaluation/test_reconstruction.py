from dataclasses import asdict

import numpy as np
import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE
from sae_lens.saes.topk_sae import TopKSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig

from sae_lens_sparsemax.evaluation.reconstruction import evaluate_nmse_batchtopk, evaluate_reconstruction

D_IN, D_SAE = 12, 30


@pytest.fixture
def sae():
    torch.manual_seed(0)
    return StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype="float64"))


@pytest.fixture
def x():
    # A mean much larger than the spread, as in a residual stream.
    return torch.randn(5, 21, D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 30


def test_every_metric_equals_its_formula_on_the_whole_set_however_it_is_cut(sae, x):
    flat = x.reshape(-1, D_IN)
    with torch.no_grad():
        acts = sae.encode(flat)
        out = sae.decode(acts)
    error = (flat - out).pow(2).sum()
    l0 = (acts != 0).sum(-1).numpy()
    expected = {
        "n_tokens": 105,
        "mse": error / 105,
        "nmse": error / flat.pow(2).sum(),
        "fvu": error / (flat - flat.mean(0)).pow(2).sum(),
        "explained_variance": 1 - error / (flat - flat.mean(0)).pow(2).sum(),
        "fvu_per_sample": ((flat - out).var(-1) / flat.var(-1)).mean(),
        "cosine_similarity": ((flat * out).sum(-1) / flat.norm(dim=-1) / out.norm(dim=-1)).mean(),
        "l0": l0.mean(),
        "l0_p5": np.percentile(l0, 5),
        "l0_p50": np.percentile(l0, 50),
        "l0_p95": np.percentile(l0, 95),
        "zero_fraction": (acts == 0).double().mean(),
        "dead_fraction": (acts == 0).all(0).double().mean(),
    }
    for batches, chunk_size in ((x, 1000), (x, 4), (x.split(2), 13), ([flat], 1)):
        metrics = evaluate_reconstruction(sae, batches, chunk_size=chunk_size)
        for name, value in expected.items():
            assert getattr(metrics, name) == pytest.approx(float(value), rel=1e-9), name


def test_sparse_activations_count_only_what_is_not_zero():
    torch.manual_seed(0)
    settings = {"d_in": D_IN, "d_sae": D_SAE, "k": 20, "dtype": "float64"}
    sparse = TopKTrainingSAE(TopKTrainingSAEConfig(**settings, use_sparse_activations=True))
    dense = TopKSAE(TopKSAEConfig(**settings))
    dense.load_state_dict(sparse.state_dict())
    x = torch.randn(40, D_IN, dtype=torch.float64)
    stored = sparse.encode(x)
    assert stored.is_sparse and (stored.coalesce().values() == 0).any()
    ours, expected = (asdict(evaluate_reconstruction(sae, [x])) for sae in (sparse, dense))
    assert ours == pytest.approx(expected)


def test_nmse_batchtopk_is_measured_in_the_space_of_standardised_tokens(sae, x):
    flat = x.reshape(-1, D_IN).numpy()
    standardised = (flat - flat.mean(-1, keepdims=True)) / (flat.std(-1, ddof=1, keepdims=True) + 1e-5)
    with torch.no_grad():
        out = sae(torch.tensor(standardised)).numpy()
    expected = ((out - standardised) ** 2).mean()
    assert evaluate_nmse_batchtopk(sae, x, chunk_size=7, progress=False) == pytest.approx(expected, rel=1e-9)


def test_evaluation_leaves_a_training_sae_as_it_was(x):
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3))
    sae.train()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    evaluate_reconstruction(sae, x)
    assert sae.training
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_tokens_of_the_wrong_width_and_no_tokens_are_refused(sae):
    with pytest.raises(ValueError, match="activations must be of the SAE's width 12, got 13"):
        evaluate_reconstruction(sae, [torch.zeros(4, 13)])
    with pytest.raises(ValueError, match="no tokens"):
        evaluate_reconstruction(sae, [])


def test_constant_and_zero_tokens_give_finite_metrics(sae):
    x = torch.zeros(6, D_IN, dtype=torch.float64)
    x[3:] = torch.randn(3, D_IN, dtype=torch.float64)
    metrics = evaluate_reconstruction(sae, [x])
    assert np.isfinite([getattr(metrics, name) for name in metrics.__dataclass_fields__]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_sae_of_less_precision_is_compared_with_the_activations_as_they_are(dtype):
    """Rounding an activation to the SAE's precision is part of what the SAE loses."""
    sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=2 * D_IN, dtype=dtype))
    sae.W_dec.data.copy_(torch.cat([torch.eye(D_IN), -torch.eye(D_IN)]))
    sae.W_enc.data.copy_(sae.W_dec.data.T)
    x = torch.randn(200, D_IN, generator=torch.Generator().manual_seed(2)) + 50
    with torch.no_grad():
        error = (x.double() - sae(x.to(sae.dtype)).double()).pow(2).sum()
    expected = error / (x.double() - x.double().mean(0)).pow(2).sum()
    assert evaluate_reconstruction(sae, [x]).fvu == pytest.approx(expected.item(), rel=1e-6)
    assert evaluate_reconstruction(sae, [x]).fvu > 1e-5
