"""Pictures of a suite: how L0 is distributed, whether it follows complexity, and accuracy against top-n concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

# Okabe and Ito's colours, told apart by readers with any colour vision, and by shape without colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = "os^D"
# Bars beyond this quantile of the mass would squeeze all others.
_SHOWN_MASS = 0.999


def write_plots(suite: str, groups: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the pictures that the measured groups allow and return their paths."""
    measured = {name: result for name, result in groups.items() if "not_measured" not in result}
    if suite == "text":
        histograms = {name.split("/")[0]: r["l0"] for name, r in measured.items() if "l0" in r}
    else:
        sparsity = measured.get("sparsity", {})
        histograms = {
            label: sparsity[key] for key, label in (("per_token", "tokens"), ("per_image", "images")) if key in sparsity
        }
    figures: dict[str, Figure] = {}
    if histograms:
        figures["l0_histogram"] = l0_histograms(histograms)
    if "against_complexity" in measured.get("sparsity", {}):
        figures["l0_against_complexity"] = l0_over_complexity(measured["sparsity"]["against_complexity"])
    if "zero_shot" in measured:
        figures["top_n_accuracy"] = top_n_accuracy(measured["zero_shot"]["zero_shot"])
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130)
        paths.append(path)
    return paths


def l0_histograms(distributions: Mapping[str, Any]) -> Figure:
    """One panel per distribution: the share of tokens or images with each number of active concepts."""
    figure, panels = _panels(len(distributions))
    for axes, (label, l0) in zip(panels, distributions.items(), strict=True):
        counts = l0["counts"]
        shares = [count / l0["n"] for count in counts]
        shown, mass = len(shares), 1.0
        while mass - shares[shown - 1] > _SHOWN_MASS:
            shown -= 1
            mass -= shares[shown]
        axes.bar(range(shown), shares[:shown], width=1.0, color=_COLOURS[0], alpha=0.8)
        axes.axvline(l0["mean"], color=_COLOURS[1], linewidth=1.5)
        axes.set_title(f"{label}: mean {l0['mean']:.1f}, p5 {l0['p5']:.0f}, p95 {l0['p95']:.0f}", fontsize=10)
        axes.set_xlabel("active concepts (L0)")
        axes.set_ylabel("share")
    return figure


def l0_over_complexity(relation: Mapping[str, Any]) -> Figure:
    """Mean L0 of images in ten bins of equal size by complexity."""
    figure, (axes,) = _panels(1)
    axes.plot(relation["bin_complexity"], relation["bin_l0"], color=_COLOURS[0], marker=_MARKERS[0])
    axes.set_xlabel("complexity of the image (compressed bytes per value)")
    axes.set_ylabel("mean L0 of its tokens")
    axes.set_title(f"rank correlation {relation['spearman'] or 0:.2f} over {relation['n']:,} images", fontsize=10)
    axes.grid(alpha=0.3)
    return figure


def top_n_accuracy(zero_shot: Mapping[str, Any]) -> Figure:
    """Accuracy with the top n concepts on (solid) or off (dashed): one panel for each mask."""
    masks = list(dict.fromkeys(entry["mask"] for entry in zero_shot["masked"]))
    figure, panels = _panels(len(masks), width=5.6)
    for axes, mask in zip(panels, masks, strict=True):
        _draw_mask(axes, zero_shot, mask)
    return figure


def _draw_mask(axes: Axes, zero_shot: Mapping[str, Any], mask: str) -> None:
    entries = [entry for entry in zero_shot["masked"] if entry["mask"] == mask]
    for i, concepts in enumerate(dict.fromkeys(entry["concepts"] for entry in entries)):
        for switch, style in (("on", "-"), ("off", "--")):
            points = [e for e in entries if e["concepts"] == concepts and e["switch"] == switch]
            axes.plot(
                [e["n"] for e in points],
                [100 * e["accuracy"]["images"] for e in points],
                style,
                color=_COLOURS[i],
                marker=_MARKERS[i],
                label=f"{concepts.replace('_', '-')}, {switch}",
            )
    for key, label, colour in (("no_sae", "no SAE", "#000000"), ("all_concepts", "all concepts", "#6b7280")):
        axes.axhline(100 * zero_shot[key]["images"], color=colour, linewidth=1, linestyle=":", label=label)
    axes.set_xscale("log")
    axes.set_xticks(sorted({e["n"] for e in entries}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("concepts per class, n")
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"mask of the {'true' if mask == 'oracle' else 'predicted'} class", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _panels(n: int, width: float = 4.6) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width * n, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, n, i + 1) for i in range(n)]
