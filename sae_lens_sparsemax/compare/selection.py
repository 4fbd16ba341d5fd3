"""
Choosing each architecture's best learning rate, and averaging over seeds.

All choices are made by explained variance on the validation set. Where the rate leaves L0 alone (`k`, `target_l0`),
every value of the sparsity field keeps its best rate. Where the rate moves L0, as under a penalty with a coefficient,
that would choose the rate with the densest codes; such an arm gets one rate, the one whose line lies highest over
the range of log L0 that all its rates reach.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from sae_lens_sparsemax.compare.config import Arm, CompareConfig
from sae_lens_sparsemax.compare.lines import lines, mean_height
from sae_lens_sparsemax.compare.runs import RunResult
from sae_lens_sparsemax.compare.sources import VALIDATION


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
