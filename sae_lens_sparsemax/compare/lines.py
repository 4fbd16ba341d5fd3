"""
The line of an arm in the plane of L0 and a measure, for comparisons at the same L0.

Coefficients of a sparsity penalty do not hit an L0 that was asked for. Between the points that were measured,
each seed's line is interpolated linearly in log L0.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sae_lens_sparsemax.compare.runs import RunResult

# How far beyond its ends a line is prolonged: an SAE asked for an L0 of 8 may have 8.2.
_SLACK = math.log(1.05)


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
    """
    One line for each seed, of the runs in which the measure is finite; runs of one L0 are averaged.

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
