import math

import pytest

from sae_lens_sparsemax.compare.config import Arm, CompareConfig
from sae_lens_sparsemax.compare.runs import RunResult
from sae_lens_sparsemax.compare.selection import best_points

CFG = CompareConfig(
    arms=[Arm("a", "topk", "k", [4, 8], [1e-3, 2e-3, 4e-3])], synthetic_model={"num_features": 4}, seeds=[0, 1]
)


def result(sparsity, lr, seed, validation, test):
    metrics = {"validation": {"explained_variance": validation}, "synthetic": {"explained_variance": test}}
    return RunResult("a", "topk", "k", sparsity, lr, seed, "", 1.0, 4.0, 0.0, metrics)


def test_the_learning_rate_is_chosen_on_validation_over_all_seeds_and_edges_are_marked():
    scores = {1e-3: (0.9, 0.1), 2e-3: (0.6, 0.6), 4e-3: (0.5, 0.5)}  # the best single seed is not the best rate
    results = [result(4, lr, seed, v, 0.3 + seed / 10) for lr, pair in scores.items() for seed, v in enumerate(pair)]
    results += [result(8, lr, 0, lr, 0.5) for lr in scores]
    four, eight = best_points(CFG, results)
    assert (four.lr, four.lr_at_edge, eight.lr, eight.lr_at_edge) == (2e-3, False, 4e-3, True)
    assert four.mean("synthetic", "explained_variance") == pytest.approx(0.35)
    assert four.std("synthetic", "explained_variance") == pytest.approx(0.1 / math.sqrt(2))
    assert math.isnan(eight.std("synthetic", "explained_variance"))


@pytest.mark.parametrize("diverged", [None, math.nan])
def test_a_diverged_run_loses_and_its_numbers_are_left_out_of_means(diverged):
    results = [result(4, 1e-3, 0, -5.0, 0.2), result(4, 2e-3, 0, diverged, diverged)]
    (point,) = best_points(CFG, results)
    assert point.lr == 1e-3
    (point,) = best_points(CFG, results[1:])
    assert math.isnan(point.mean("synthetic", "explained_variance"))
