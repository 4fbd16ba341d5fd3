import numpy as np
import pytest
import torch

from sae_lens_sparsemax.evaluation.streaming import CountDistribution, RunningMean, TotalVariance


def test_percentiles_of_counts_equal_numpys():
    values = torch.randint(0, 60, (997,), generator=torch.Generator().manual_seed(0))
    distribution = CountDistribution()
    for part in values.split(100):
        distribution.add(part)
    for percent in (0, 5, 12.3, 50, 95, 99.9, 100):
        assert distribution.percentile(percent) == pytest.approx(np.percentile(values.numpy(), percent))
    assert distribution.mean() == pytest.approx(values.double().mean().item())
    assert distribution.std() == pytest.approx(values.double().std(correction=0).item())


def test_variance_survives_a_mean_far_larger_than_the_spread():
    x = torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e8
    variance = TotalVariance()
    for part in x.split(37):
        variance.add(part)
    assert variance.sum_of_squares == pytest.approx((x - x.mean(0)).pow(2).sum().item(), rel=1e-8)
    assert variance.mean is not None and torch.allclose(variance.mean, x.mean(0), rtol=1e-14)


def test_nothing_added_is_not_a_number():
    assert np.isnan([RunningMean().mean(), CountDistribution().mean(), CountDistribution().percentile(5)]).all()
