import math

import pytest

from sae_lens_sparsemax.compare.arm import Arm
from sae_lens_sparsemax.compare.config import CompareConfig
from sae_lens_sparsemax.compare.runs import RunResult
from sae_lens_sparsemax.compare.selection import best_points

CFG = CompareConfig(
    arms=[Arm("a", "topk", "k", [4, 8], [1e-3, 2e-3, 4e-3])],
    synthetic_model={"num_features": 4, "hidden_dim": 2},
    seeds=[0, 1],
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


def test_where_the_rate_moves_l0_the_whole_arm_gets_the_rate_whose_line_lies_highest():
    def at(lr, coefficient, l0, variance):
        metrics = {"validation": {"l0": l0, "explained_variance": variance}}
        return RunResult("a", "standard", "l1_coefficient", coefficient, lr, 0, "", 1.0, l0, 0.0, metrics)

    # At every coefficient the second rate explains more, but only since its codes are twice as dense: at the same
    # L0 it explains less.
    results = [at(1e-3, 1, 8, 0.6), at(1e-3, 2, 4, 0.5), at(2e-3, 1, 16, 0.65), at(2e-3, 2, 8, 0.55)]
    arm = Arm("a", "standard", "l1_coefficient", [1, 2], [1e-3, 2e-3])
    cfg = CompareConfig(arms=[arm], synthetic_model={"num_features": 4, "hidden_dim": 2})
    assert arm.one_lr
    assert [point.lr for point in best_points(cfg, [*results, at(2e-3, 0.5, 4, 0.45)])] == [1e-3, 1e-3]
    arm.one_lr = False
    assert [point.lr for point in best_points(cfg, results)] == [2e-3, 2e-3]
    # Lines that share no L0 cannot be compared: the first rate given stands.
    arm.one_lr, arm.lrs = True, [2e-3, 1e-3]
    apart = [at(1e-3, 1, 80, 0.9), at(1e-3, 2, 40, 0.8), at(2e-3, 1, 8, 0.65), at(2e-3, 2, 4, 0.55)]
    assert [point.lr for point in best_points(cfg, apart)] == [2e-3, 2e-3]
    diverged = [at(2e-3, 1, 8, None), at(2e-3, 2, 4, math.nan), *results[:2]]
    assert [point.lr for point in best_points(cfg, diverged)] == [1e-3, 1e-3]
