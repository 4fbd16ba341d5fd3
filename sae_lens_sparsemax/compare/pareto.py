"""Pareto plots of a comparison: each measure against L0, one line per arm, error bars over seeds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_lens_sparsemax.compare.config import CompareConfig
from sae_lens_sparsemax.compare.selection import MEASURES, Point
from sae_lens_sparsemax.display.plots import INK, SMALL, log_scale, panels, save_figure, series_style, style

# A value of the model itself, to which the measure tends, drawn as a dashed line.
_REFERENCES = {"zero_shot_accuracy": "zero_shot_accuracy_without_sae"}


def write_plots(cfg: CompareConfig, points: Sequence[Point], folder: Path) -> list[Path]:
    """Write `pareto_<measure>.png` of every measure there is, a panel per evaluation set, and `pareto.png` of all."""
    measured: dict[str, list[tuple[str, str]]] = {}
    for measure in MEASURES:
        for dataset in cfg.evaluation_sets:
            if any(point.values(dataset, measure) for point in points):
                measured.setdefault(measure, []).append((dataset, measure))
    figures = {f"pareto_{measure}.png": _figure(points, here, len(here)) for measure, here in measured.items()}
    everything = [panel for here in measured.values() for panel in here]
    # The columns are evaluation sets, or measures where there is one set.
    n_columns = len(cfg.evaluation_sets) if len(cfg.evaluation_sets) > 1 else min(3, len(everything))
    figures["pareto.png"] = _figure(points, everything, n_columns)
    return [save_figure(figure, folder / name) for name, figure in figures.items()]


def _figure(points: Sequence[Point], shown: Sequence[tuple[str, str]], n_columns: int) -> Figure:
    figure, all_axes = panels(len(shown), 5.2, 4.2, n_columns=n_columns, legend=2)
    for axes, (dataset, measure) in zip(all_axes, shown, strict=True):
        for number, arm in enumerate(dict.fromkeys(point.arm for point in points)):
            here = [p for p in points if p.arm == arm and p.values(dataset, measure)]
            here.sort(key=lambda p: p.mean(dataset, "l0"))
            axes.errorbar(
                [p.mean(dataset, "l0") for p in here],
                [p.mean(dataset, measure) for p in here],
                xerr=[p.std(dataset, "l0") for p in here],
                yerr=[p.std(dataset, measure) for p in here],
                label=arm,
                **series_style(number),
                markersize=5,
                linewidth=1.2,
                capsize=2,
            )
        _add_reference(axes, points, dataset, measure)
        log_scale(axes, "x", base=2)
        style(axes, dataset, "L0 (mean active concepts)", MEASURES[measure], grid="both")
        if measure == "explained_variance":
            spread_below_one(axes)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def spread_below_one(axes: Axes) -> None:
    """Scale the unexplained part by its logarithm: 0.98 and 0.99 lie as far apart as 0.8 and 0.9."""
    low, high = axes.get_ylim()
    drawn = [value for line in axes.get_lines() for value in np.asarray(line.get_ydata(), float)]
    if not drawn or max(drawn) >= 1:
        return
    high = min(high, 1 - 0.7 * (1 - max(drawn)))
    axes.set_ylabel(f"{axes.get_ylabel()} (log of the rest)")
    axes.set_yscale("function", functions=(_log_unexplained, lambda y: 1 - np.exp(-y)))
    axes.set_ylim(low, high)
    wide = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.96, 0.98, 0.99, 0.996, 0.998, 0.999, 0.9996, 0.9998, 0.9999]
    narrow = [round(0.05 * i, 2) for i in range(20)]
    ticks = [tick for tick in wide if low <= tick <= high]
    axes.set_yticks(ticks if len(ticks) >= 4 else [tick for tick in narrow if low <= tick <= high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _log_unexplained(explained: np.ndarray) -> np.ndarray:
    # Matplotlib also tries values beyond the limits.
    return -np.log(np.maximum(1 - np.asarray(explained, float), 1e-12))


def _add_reference(axes: Axes, points: Sequence[Point], dataset: str, measure: str) -> None:
    reference = _REFERENCES.get(measure)
    values = [value for point in points for value in point.values(dataset, reference)] if reference else []
    if values:
        axes.axhline(values[0], color=INK, linestyle="--", linewidth=1)
        axes.annotate(
            "without SAE", (0.01, values[0]), xycoords=("axes fraction", "data"), ha="left", va="bottom", fontsize=SMALL
        )
