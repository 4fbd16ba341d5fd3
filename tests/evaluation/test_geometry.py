import math
import warnings

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sae_lens_sparsemax.evaluation.geometry import (
    cknna,
    decoder_orthogonality,
    evaluate_geometry,
    hsic_unbiased,
    linear_kernel,
    sparse_linear_kernel,
)
from sae_lens_sparsemax.models.encoding import sparse_acts

D_IN, D_SAE = 8, 20


@pytest.fixture
def sae():
    torch.manual_seed(0)
    return StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, dtype="float64"))


def random(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cknna_by_loops(x, y, k):
    """The definition, one pair at a time."""
    n = len(x)

    def masked(values, *spaces):
        kernel = [[0.0] * n for _ in range(n)]
        for i in range(n):
            neighbours = [
                set(sorted((j for j in range(n) if j != i), key=lambda j: -float(space[i] @ space[j]))[:k])
                for space in spaces
            ]
            for j in set.intersection(*neighbours):
                kernel[i][j] = float(values[i] @ values[j])
        return kernel

    def hsic(a, b):
        total_a = sum(map(sum, a))
        total_b = sum(map(sum, b))
        trace = sum(a[i][j] * b[j][i] for i in range(n) for j in range(n))
        product = sum(a[i][j] * b[j][m] for i in range(n) for j in range(n) for m in range(n))
        return (trace + total_a * total_b / (n - 1) / (n - 2) - 2 * product / (n - 2)) / (n * (n - 3))

    cross = hsic(masked(x, x, y), masked(y, x, y))
    return cross / math.sqrt(hsic(masked(x, x), masked(x, x)) * hsic(masked(y, y), masked(y, y)))


def test_cknna_equals_the_definition_taken_pair_by_pair():
    x, y = random(25, 6), random(25, 9, seed=2)
    y[:, :6] += x
    assert cknna(linear_kernel(x), linear_kernel(y), 5) == pytest.approx(cknna_by_loops(x, y, 5), rel=1e-9)


def test_cknna_is_one_for_rotated_copies_and_near_zero_for_unrelated_samples():
    x = random(200, 12)
    rotation = torch.linalg.qr(random(12, 12, seed=3)).Q
    assert cknna(linear_kernel(x), linear_kernel(3 * x @ rotation)) == pytest.approx(1)
    assert abs(cknna(linear_kernel(x), linear_kernel(random(200, 12, seed=4)))) < 0.1
    assert cknna(linear_kernel(x), torch.zeros(200, 200, dtype=torch.float64)) == 0


def test_unbiased_hsic_averages_to_zero_for_independent_samples():
    values = [
        hsic_unbiased(linear_kernel(random(10, 3, seed=s)), linear_kernel(random(10, 3, seed=-s)))
        for s in range(1, 400)
    ]
    spread = torch.tensor(values).std().item() / math.sqrt(len(values))
    assert abs(sum(values) / len(values)) < 4 * spread


def test_sparse_kernel_equals_the_dense_one():
    acts = random(30, D_SAE).relu()
    with warnings.catch_warnings(action="error"):  # torch's on invariants, which the settings of the tests let pass
        assert torch.allclose(sparse_linear_kernel(sparse_acts(acts)), acts @ acts.T)


def test_decoder_orthogonality_is_the_mean_squared_off_diagonal_cosine():
    W_dec = random(40, 12)
    cosine = torch.nn.functional.cosine_similarity(W_dec[:, None], W_dec[None], dim=-1)
    off_diagonal = cosine[~torch.eye(40, dtype=torch.bool)]
    assert decoder_orthogonality(W_dec) == pytest.approx(off_diagonal.pow(2).mean().item(), rel=1e-12)
    with_dead_row = torch.cat([W_dec, torch.zeros(1, 12, dtype=torch.float64)])
    assert decoder_orthogonality(with_dead_row) == pytest.approx(decoder_orthogonality(W_dec))
    assert decoder_orthogonality(torch.eye(7)) == 0


def test_batches_of_cknna_do_not_depend_on_how_the_stream_is_cut(sae):
    x = random(130, D_IN)
    with torch.no_grad():
        acts, out = sae.encode(x), sae(x)
    expected = [
        sum(cknna(linear_kernel(x[i : i + 40]), linear_kernel(y[i : i + 40])) for i in (0, 40, 80)) / 3
        for y in (acts, out)
    ]
    for batches, chunk_size in (([x], 1000), (x.split(7), 3), (x.split(100), 64)):
        metrics = evaluate_geometry(sae, batches, cknna_batch_size=40, chunk_size=chunk_size)
        assert metrics.n_cknna_batches == 3
        assert metrics.cknna_acts == pytest.approx(expected[0], rel=1e-9)
        assert metrics.cknna_recon == pytest.approx(expected[1], rel=1e-9)
        assert metrics.reconstruction.n_tokens == 130


def test_images_are_averaged_over_their_tokens_before_anything_is_measured(sae):
    x = random(24, 5, D_IN)
    with torch.no_grad():
        acts, out = sae.encode(x).mean(1), sae(x).mean(1)
    pooled = x.mean(1)
    metrics = evaluate_geometry(sae, x.split(9), level="image", cknna_batch_size=24, chunk_size=13)
    expected = 1 - (pooled - out).pow(2).sum() / (pooled - pooled.mean(0)).pow(2).sum()
    assert metrics.reconstruction.explained_variance == pytest.approx(expected.item())
    assert metrics.reconstruction.zero_fraction == pytest.approx((acts == 0).double().mean().item())
    assert metrics.cknna_acts == pytest.approx(cknna(linear_kernel(pooled), linear_kernel(acts)))
    with pytest.raises(ValueError, match=r"activations must be of shape \(images, tokens, d_in\), got \(24, 8\)"):
        evaluate_geometry(sae, [pooled], level="image")


def test_a_batch_too_small_for_the_neighbours_is_refused(sae):
    with pytest.raises(ValueError, match="cknna_batch_size must exceed the 10 neighbours compared, got 10"):
        evaluate_geometry(sae, [random(20, D_IN)], cknna_batch_size=10)
