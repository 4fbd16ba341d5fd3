"""What is compared of the finished runs: each architecture at its best learning rate, and all of them at the same L0.

All choices are made by explained variance on the validation set. Where the rate leaves L0 alone (`k`, `target_l0`),
every value of the sparsity field keeps its best rate. Where the rate moves L0, as under a penalty with a coefficient,
that would choose the rate with the densest codes; such an arm gets one rate, the one whose line lies highest over
the range of log L0 that all its rates reach.

Coefficients of a sparsity penalty do not hit an L0 that was asked for. For comparisons at the same L0, an arm has a
line in the plane of L0 and a measure: between the points that were measured, each seed's line is interpolated
linearly in log L0.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sae_lens_sparsemax.compare.arm import Arm
from sae_lens_sparsemax.compare.config import CompareConfig
from sae_lens_sparsemax.compare.runs import RunResult
from sae_lens_sparsemax.compare.sources import VALIDATION
from sae_lens_sparsemax.evaluation.probing import KS
from sae_lens_sparsemax.evaluation.reconstruction import EXPLAINED_VARIANCE

MEASURES = {
    "explained_variance": EXPLAINED_VARIANCE,
    "ce_loss_score": "Cross-entropy loss score",
    **{f"probe_auc_k{k}": f"AUC of probes on {k} concept{'s' * (k > 1)}" for k in KS},
    "zero_shot_accuracy": "Zero-shot accuracy",
    "mcc": "MCC with the true features",
    "f1": "F1 of the best-matching features",
    "precision": "Precision for the best-matching features",
    "recall": "Recall of the best-matching features",
    "uniqueness": "Different best-matching features (fraction)",
    "dead_fraction": "Dead concepts (fraction)",
}
"""What is plotted and interpolated, where it was measured, with the label of the axis."""
_SHARES = {"dead_fraction", "precision", "recall", "uniqueness"}

# How far beyond its ends a line is prolonged: an SAE asked for an L0 of 8 may have 8.2.
_SLACK = math.log(1.05)


@dataclass(frozen=True)
class Point:
    """One point of the plots: an arm at one sparsity and its best learning rate, over all seeds."""

    arm: str
    """Name of the arm."""
    sparsity_field: str
    """Field that sets the sparsity."""
    sparsity: float
    """Its value."""
    lr: float
    """The chosen learning rate."""
    lr_at_edge: bool
    """Whether it is the smallest or largest of several tried, so that a better one may lie outside."""
    results: tuple[RunResult, ...]
    """The runs at this learning rate, one for each seed."""

    def values(self, dataset: str, measure: str) -> list[float]:
        """A measure at every seed that has it."""
        found = [result.metrics.get(dataset, {}).get(measure) for result in self.results]
        return [value for value in found if value is not None and not math.isnan(value)]

    def mean(self, dataset: str, measure: str) -> float:
        """Mean over seeds; NaN where no run has the measure."""
        values = self.values(dataset, measure)
        return statistics.fmean(values) if values else math.nan

    def std(self, dataset: str, measure: str) -> float:
        """Sample standard deviation over seeds; NaN for fewer than two."""
        values = self.values(dataset, measure)
        return statistics.stdev(values) if len(values) > 1 else math.nan


def best_points(cfg: CompareConfig, results: Iterable[RunResult]) -> list[Point]:
    """Every (arm, sparsity) that has finished runs, at its best learning rate, in the order of the arms."""
    results = list(results)
    points = []
    for arm in cfg.arms:
        of_arm = [result for result in results if result.arm == arm.name]
        common = _best_for_arm(arm, of_arm) if arm.one_lr else None
        for sparsity in arm.sparsities:
            here = [result for result in of_arm if result.sparsity == sparsity]
            if not here:
                continue
            by_lr = {lr: tuple(r for r in here if r.lr == lr) for lr in arm.lrs}
            best = max((lr for lr in arm.lrs if by_lr[lr]), key=lambda lr: _validation_score(by_lr[lr]))
            if common is not None and by_lr[common]:
                best = common
            at_edge = len(arm.lrs) > 1 and best in (min(arm.lrs), max(arm.lrs))
            points.append(Point(arm.name, arm.sparsity_field, sparsity, best, at_edge, by_lr[best]))
    return points


def _best_for_arm(arm: Arm, results: list[RunResult]) -> float:
    """The rate with the highest line over the common range of L0; the first given, if there is no such range."""
    by_lr = {}
    for lr in arm.lrs:
        found = lines((r for r in results if r.lr == lr), VALIDATION, "explained_variance")
        # A rate at which a seed diverged everywhere is out.
        if found and all(len(line.log_l0) for line in found):
            by_lr[lr] = found
    ends = [(line.log_l0[0], line.log_l0[-1]) for found in by_lr.values() for line in found]
    lowest, highest = max((end[0] for end in ends), default=0), min((end[1] for end in ends), default=0)
    if not by_lr or lowest >= highest:
        return next(iter(by_lr), arm.lrs[0])
    return max(by_lr, key=lambda lr: mean_height(by_lr[lr], lowest, highest))


def _validation_score(results: tuple[RunResult, ...]) -> float:
    scores = [result.metrics[VALIDATION]["explained_variance"] for result in results]
    # A diverged run (NaN, saved as null) must lose against every other.
    return statistics.fmean(-math.inf if s is None or math.isnan(s) else s for s in scores)


@dataclass(frozen=True)
class Line:
    """A measure as a function of log L0, from the runs of one arm and seed."""

    log_l0: np.ndarray
    """Increasing."""
    values: np.ndarray
    """The measure at each."""

    def at(self, l0: float) -> float:
        """The measure at an L0; NaN where the line does not reach, up to 5 % beyond its ends."""
        x = math.log(l0)
        n = len(self.log_l0)
        if n == 0 or not self.log_l0[0] - _SLACK <= x <= self.log_l0[-1] + _SLACK:
            return math.nan
        if n == 1:
            return float(self.values[0])
        right = min(max(int(np.searchsorted(self.log_l0, x)), 1), n - 1)
        (x0, x1), (y0, y1) = self.log_l0[right - 1 : right + 1], self.values[right - 1 : right + 1]
        return float(y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def lines(results: Iterable[RunResult], dataset: str, measure: str) -> list[Line]:
    """One line for each seed, of the runs in which the measure is finite; runs of one L0 are averaged.

    Args:
        results: Runs of one arm, at any values of its sparsity field.
        dataset: Evaluation set.
        measure: Name of the measure.
    """
    by_seed: dict[int, dict[float, list[float]]] = {}
    for result in results:
        metrics = result.metrics.get(dataset, {})
        l0, value = metrics.get("l0"), metrics.get(measure)
        here = by_seed.setdefault(result.seed, {})
        if l0 is not None and value is not None and l0 > 0 and math.isfinite(value):
            here.setdefault(math.log(l0), []).append(value)
    return [
        Line(np.array(sorted(found)), np.array([statistics.fmean(found[x]) for x in sorted(found)]))
        for found in by_seed.values()
    ]


def at_l0(seed_lines: Sequence[Line], l0: float) -> list[float]:
    """The measure at an L0 for every seed, or nothing if the line of any seed does not reach it."""
    values = [line.at(l0) for line in seed_lines]
    return [] if any(math.isnan(value) for value in values) else values


def mean_height(seed_lines: Sequence[Line], lowest: float, highest: float) -> float:
    """Mean of a measure over a range of log L0 and over seeds; each line must have points on both its sides."""
    grid = np.linspace(lowest, highest, 65)
    return statistics.fmean(float(np.interp(grid, line.log_l0, line.values).mean()) for line in seed_lines)


@dataclass(frozen=True)
class MatchedValue:
    """One measure of one arm at one L0."""

    dataset: str
    """Evaluation set."""
    measure: str
    """Name of the measure."""
    arm: str
    """Name of the arm."""
    l0: float
    """The L0 it is interpolated to."""
    mean: float
    """Mean over seeds; NaN where the line of some seed does not reach this L0."""
    std: float
    """Sample standard deviation over seeds; NaN for fewer than two."""


def matched_values(cfg: CompareConfig, points: Sequence[Point]) -> list[MatchedValue]:
    """Every measure that exists, of every arm, at every L0 of `cfg.matched_l0`."""
    found = []
    for dataset in cfg.evaluation_sets:
        for measure in MEASURES:
            if not any(point.values(dataset, measure) for point in points):
                continue
            for arm in dict.fromkeys(point.arm for point in points):
                results = [result for point in points if point.arm == arm for result in point.results]
                seed_lines = lines(results, dataset, measure)
                for l0 in cfg.matched_l0:
                    values = at_l0(seed_lines, l0)
                    if measure in _SHARES:  # a line that is prolonged may leave what a share can be
                        values = [min(max(value, 0.0), 1.0) for value in values]
                    mean = statistics.fmean(values) if values else math.nan
                    std = statistics.stdev(values) if len(values) > 1 else math.nan
                    found.append(MatchedValue(dataset, measure, arm, l0, mean, std))
    return found
