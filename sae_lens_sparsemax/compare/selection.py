"""Choosing each architecture's best learning rate, and averaging over seeds."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from sae_lens_sparsemax.compare.config import CompareConfig
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
    """The learning rate with the highest mean explained variance on the validation set."""
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
    """The best learning rate of every (arm, sparsity) that has finished runs, in the order of the arms."""
    results = list(results)
    points = []
    for arm in cfg.arms:
        for sparsity in arm.sparsities:
            here = [r for r in results if r.arm == arm.name and r.sparsity == sparsity]
            if not here:
                continue
            by_lr = {lr: tuple(r for r in here if r.lr == lr) for lr in arm.lrs}
            best = max((lr for lr in arm.lrs if by_lr[lr]), key=lambda lr: _validation_score(by_lr[lr]))
            at_edge = len(arm.lrs) > 1 and best in (min(arm.lrs), max(arm.lrs))
            points.append(Point(arm.name, arm.sparsity_field, sparsity, best, at_edge, by_lr[best]))
    return points


def _validation_score(results: tuple[RunResult, ...]) -> float:
    scores = [result.metrics[VALIDATION]["explained_variance"] for result in results]
    # A diverged run (NaN, saved as null) must lose against every other.
    return statistics.fmean(-math.inf if s is None or math.isnan(s) else s for s in scores)
