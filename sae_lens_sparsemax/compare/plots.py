"""Pareto plots of a comparison: each measure against L0, one line per arm, error bars over seeds."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from sae_lens_sparsemax.compare.config import CompareConfig
from sae_lens_sparsemax.compare.selection import Point

# What is plotted, where it was measured, with the label of the axis.
MEASURES = {
    "explained_variance": "Explained variance",
    "ce_loss_score": "Cross-entropy loss score",
    "zero_shot_accuracy": "Zero-shot accuracy",
    "mcc": "MCC with the true features",
    "f1": "F1 of the best-matching features",
    "dead_fraction": "Dead concepts (fraction)",
}

# Okabe and Ito's colours, told apart by readers with any colour vision, and by shape without colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_MARKERS = "osD^vP*X"


def write_plots(cfg: CompareConfig, points: Sequence[Point], folder: Path) -> list[Path]:
    """Write one `pareto_<measure>.png` for every measure that exists, a panel per evaluation set."""
    paths = []
    for measure in MEASURES:
        datasets = [name for name in cfg.evaluation_sets if any(p.values(name, measure) for p in points)]
        if datasets:
            path = folder / f"pareto_{measure}.png"
            _figure(points, datasets, measure).savefig(path, dpi=150)
            paths.append(path)
    return paths


def _figure(points: Sequence[Point], datasets: list[str], measure: str) -> Figure:
    figure = Figure(figsize=(5.2 * len(datasets) + 1.8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for i, dataset in enumerate(datasets):
        axes = figure.add_subplot(1, len(datasets), i + 1)
        for number, arm in enumerate(dict.fromkeys(point.arm for point in points)):
            here = [p for p in points if p.arm == arm and p.values(dataset, measure)]
            here.sort(key=lambda p: p.mean(dataset, "l0"))
            axes.errorbar(
                [p.mean(dataset, "l0") for p in here],
                [p.mean(dataset, measure) for p in here],
                xerr=[p.std(dataset, "l0") for p in here],
                yerr=[p.std(dataset, measure) for p in here],
                label=arm,
                color=_COLOURS[number % len(_COLOURS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5,
                capsize=2,
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("L0 (mean active concepts)")
        axes.set_ylabel(MEASURES[measure])
        axes.set_title(dataset)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure
