"""The arms of a comparison at the same values of L0, interpolated along each one's line."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_sparsemax.compare.config import CompareConfig
from sae_lens_sparsemax.compare.lines import at_l0, lines
from sae_lens_sparsemax.compare.selection import Point

MATCHED_MEASURES = ("explained_variance", "ce_loss_score", "zero_shot_accuracy", "mcc", "f1", "dead_fraction")
"""What is interpolated, where it was measured."""


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
        for measure in MATCHED_MEASURES:
            if not any(point.values(dataset, measure) for point in points):
                continue
            for arm in dict.fromkeys(point.arm for point in points):
                results = [result for point in points if point.arm == arm for result in point.results]
                seed_lines = lines(results, dataset, measure)
                for l0 in cfg.matched_l0:
                    values = at_l0(seed_lines, l0)
                    if measure == "dead_fraction":  # a line that is prolonged may leave what a share can be
                        values = [min(max(value, 0.0), 1.0) for value in values]
                    mean = statistics.fmean(values) if values else math.nan
                    std = statistics.stdev(values) if len(values) > 1 else math.nan
                    found.append(MatchedValue(dataset, measure, arm, l0, mean, std))
    return found
