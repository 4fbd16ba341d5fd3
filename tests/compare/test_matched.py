import math

import pytest
from matplotlib.figure import Figure

from sae_lens_sparsemax.compare.arm import Arm
from sae_lens_sparsemax.compare.config import CompareConfig
from sae_lens_sparsemax.compare.report import spread_below_one, write_plots, write_tables
from sae_lens_sparsemax.compare.runs import RunResult
from sae_lens_sparsemax.compare.selection import at_l0, best_points, lines, matched_values, mean_height


def result(coefficient, seed, l0, variance, **measures):
    metrics = {name: {"l0": l0, "explained_variance": variance, **measures} for name in ("validation", "synthetic")}
    metrics["synthetic"]["dead_fraction"] = metrics["validation"]["dead_fraction"] = 0.0
    return RunResult("a", "standard", "l1_coefficient", coefficient, 1e-3, seed, "", 1.0, l0, 0.0, metrics)


def value_at(results, l0):
    return at_l0(lines(results, "synthetic", "explained_variance"), l0)


def test_between_two_points_a_line_is_straight_in_log_l0():
    runs = [result(1, 0, 32, 0.8), result(2, 0, 8, 0.4)]
    assert value_at(runs, 16) == [pytest.approx(0.6)]
    assert value_at(runs, 8) == [pytest.approx(0.4)] and value_at(runs, 32) == [pytest.approx(0.8)]


def test_a_line_reaches_five_per_cent_beyond_its_ends_and_no_further():
    runs = [result(1, 0, 32, 0.8), result(2, 0, 8, 0.4)]
    assert value_at(runs, 8 / 1.04) == [pytest.approx(0.4 - 0.2 * math.log2(1.04))]
    assert value_at(runs, 32 * 1.04) == [pytest.approx(0.8 + 0.2 * math.log2(1.04))]
    assert value_at(runs, 8 / 1.06) == value_at(runs, 32 * 1.06) == []
    assert value_at(runs[:1], 31) == [0.8]


def test_the_l0_must_be_reached_by_every_seed():
    runs = [result(1, 0, 32, 0.8), result(2, 0, 8, 0.4), result(1, 1, 20, 0.7), result(2, 1, 10, 0.5)]
    assert value_at(runs, 30) == []
    first, second = value_at(runs, 14)
    assert first == pytest.approx(0.4 + 0.4 * math.log(14 / 8) / math.log(4))
    assert second == pytest.approx(0.5 + 0.2 * math.log(14 / 10) / math.log(2))


def test_runs_that_diverged_or_are_all_dead_are_no_points_and_equal_l0_are_averaged():
    runs = [result(1, 0, 32, 0.8), result(3, 0, 32, 0.6), result(2, 0, 8, 0.4)]
    bad = [result(4, 0, 16, None), result(5, 0, 16, math.nan), result(6, 0, 0.0, 0.1)]
    (line,) = lines(runs + bad, "synthetic", "explained_variance")
    assert line.log_l0.tolist() == pytest.approx([math.log(8), math.log(32)])
    assert line.values.tolist() == pytest.approx([0.4, 0.7])
    assert mean_height([line], math.log(8), math.log(32)) == pytest.approx(0.55)


@pytest.mark.usefixtures("pictures")
def test_tables_and_plots_show_mean_and_spread_over_seeds_at_the_same_l0(tmp_path):
    cfg = CompareConfig(
        arms=[Arm("a", "standard", "l1_coefficient", [1, 2], [1e-3])],
        synthetic_model={"num_features": 4, "hidden_dim": 2},
        seeds=[0, 1],
        matched_l0=[16, 64],
    )
    runs = [result(1, 0, 32, 0.8), result(2, 0, 8, 0.4), result(1, 1, 32, 0.6), result(2, 1, 8, 0.4)]
    points = best_points(cfg, runs)
    found = {(v.measure, v.l0): v for v in matched_values(cfg, points)}
    here = found["explained_variance", 16]
    assert (here.mean, here.std) == (pytest.approx(0.55), pytest.approx(0.1 / math.sqrt(2)))
    assert math.isnan(found["explained_variance", 64].mean)
    table = write_tables(cfg, points, runs, tmp_path).read_text()
    assert "### explained variance (1 − FVU) at the same L0 on synthetic, interpolated" in table
    assert "| a | 0.5500 ± 0.0707 | n/a |" in table
    assert "synthetic,explained_variance,a,16,0.55" in (tmp_path / "matched.csv").read_text()
    names = {path.name for path in write_plots(cfg, points, tmp_path)}
    assert names == {"pareto.png", "pareto_explained_variance.png", "pareto_dead_fraction.png"}
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)


def test_a_prolonged_line_gives_no_impossible_share():
    cfg = CompareConfig(
        arms=[Arm("a", "standard", "l1_coefficient", [1, 2], [1e-3])],
        synthetic_model={"num_features": 4, "hidden_dim": 2},
        matched_l0=[33],
        seeds=[0],
    )
    runs = [result(1, 0, 32, 0.8), result(2, 0, 8, 0.4)]
    runs[1].metrics["synthetic"]["dead_fraction"] = 0.5
    found = {value.measure: value.mean for value in matched_values(cfg, best_points(cfg, runs))}
    assert found["dead_fraction"] == 0
    assert found["explained_variance"] > 0.8


def test_explained_variance_is_drawn_so_that_halving_the_rest_is_always_the_same_step():
    axes = Figure().add_subplot()
    axes.plot([8, 16, 32], [0.8, 0.9, 0.99])
    spread_below_one(axes)
    height = [axes.transData.transform((8, value))[1] for value in (0.8, 0.9, 0.95)]
    assert height[1] - height[0] == pytest.approx(height[2] - height[1]) and height[1] > height[0]
    low, high = axes.get_ylim()
    assert low < 0.8 < 0.99 < high < 1
    assert {0.8, 0.9, 0.96, 0.98, 0.99} <= set(axes.get_yticks())


def test_a_perfect_reconstruction_leaves_the_axis_as_it_is():
    axes = Figure().add_subplot()
    axes.plot([8, 16], [0.8, 1.0])
    spread_below_one(axes)
    assert axes.get_yscale() == "linear"
