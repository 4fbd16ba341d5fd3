"""Pictures of a suite: how L0 is distributed and whether it follows complexity, and accuracy against few concepts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_lens_sparsemax.display.plots import (
    INK,
    QUIET,
    draw_l0_histogram,
    legend,
    log_scale,
    panels,
    save_figure,
    series_style,
    style,
)

_HEIGHT = 3.6
_MOST_TASKS = 8


def write_pictures(suite: str, groups: Mapping[str, Any], folder: Path) -> list[Path]:
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
    if probes := {name: r["probing"]["tasks"] for name, r in measured.items() if "probing" in r}:
        figures["probing"] = probing_auc(probes)
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


def l0_histograms(distributions: Mapping[str, Any]) -> Figure:
    """One panel per distribution: the share of tokens or images with each number of active concepts."""
    figure, all_axes = panels(len(distributions), 4.6, _HEIGHT)
    for axes, (label, l0) in zip(all_axes, distributions.items(), strict=True):
        draw_l0_histogram(axes, l0["counts"], label, "images" if label == "images" else "tokens")
    return figure


def l0_over_complexity(relation: Mapping[str, Any]) -> Figure:
    """Mean L0 of images in ten bins of equal size by complexity."""
    figure, (axes,) = panels(1, 4.6, _HEIGHT)
    axes.plot(relation["bin_complexity"], relation["bin_l0"], **series_style(0))
    style(
        axes,
        f"rank correlation {relation['spearman'] or 0:.2f} over {relation['n']:,} images",
        "complexity of the image (compressed bytes per value)",
        "mean L0 of its tokens",
        grid="both",
    )
    return figure


def top_n_accuracy(zero_shot: Mapping[str, Any]) -> Figure:
    """Accuracy with the top n concepts on (solid) or off (dashed): one panel for each mask."""
    masks = list(dict.fromkeys(entry["mask"] for entry in zero_shot["masked"]))
    figure, all_axes = panels(len(masks), 5.6, _HEIGHT)
    for axes, mask in zip(all_axes, masks, strict=True):
        _draw_mask(axes, zero_shot, mask)
    return figure


def probing_auc(probes: Mapping[str, Any]) -> Figure:
    """AUC of probes on few concepts, and on raw activations (dotted), of each task: one panel for each group."""
    figure, all_axes = panels(len(probes), 5.6, _HEIGHT)
    for axes, (name, tasks) in zip(all_axes, probes.items(), strict=True):
        for i, task in enumerate(tasks[:_MOST_TASKS]):
            look = series_style(i)
            axes.plot([e["k"] for e in task["sparse"]], [e["auc"] for e in task["sparse"]], **look, label=task["task"])
            axes.axhline(task["raw"]["auc"], color=look["color"], linewidth=1, linestyle=":")
        log_scale(axes, "x")
        axes.set_xticks(sorted({e["k"] for task in tasks for e in task["sparse"]}))
        style(axes, f"{name}; dotted: raw activations", "concepts, k", "AUC of the probe", grid="both")
        legend(axes)
    return figure


def _draw_mask(axes: Axes, zero_shot: Mapping[str, Any], mask: str) -> None:
    entries = [entry for entry in zero_shot["masked"] if entry["mask"] == mask]
    for i, concepts in enumerate(dict.fromkeys(entry["concepts"] for entry in entries)):
        for switch, line in (("on", "-"), ("off", "--")):
            points = [e for e in entries if e["concepts"] == concepts and e["switch"] == switch]
            axes.plot(
                [e["n"] for e in points],
                [100 * e["accuracy"]["images"] for e in points],
                line,
                **series_style(i),
                label=f"{concepts.replace('_', '-')}, {switch}",
            )
    for key, label, colour in (("no_sae", "no SAE", INK), ("all_concepts", "all concepts", QUIET)):
        axes.axhline(100 * zero_shot[key]["images"], color=colour, linewidth=1, linestyle=":", label=label)
    log_scale(axes, "x")
    axes.set_xticks(sorted({e["n"] for e in entries}))
    axes.set_ylim(bottom=0)
    whose = "true" if mask == "oracle" else "predicted"
    style(axes, f"mask of the {whose} class", "concepts per class, n", "accuracy, %", grid="both")
    legend(axes)
