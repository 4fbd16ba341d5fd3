"""The benchmark's table and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens_sparsemax.display.plots import QUIET, SMALL, new_figure, save_figure, series_style, style
from sae_lens_sparsemax.display.tables import markdown_table

LABELS = {
    "sparsemax": "sparsemax (scores)",
    "probabilities": "sparsemax (probabilities)",
    "mlp": "sparsemax (MLP)",
    "alpha_3": "α-entmax, α = 3",
    "alpha_inf": "α = ∞ (TopK's supports)",
    "passes_1_1": "one pass and a refinement",
    "passes_2_0": "two passes",
    "passes_2_1": "two passes and a refinement",
    "passes_3_0": "three passes",
    "passes_3_1": "three passes and a refinement",
    "topk": "SAELens TopK",
    "topk_sparse": "SAELens TopK, sparse",
    "naive": "naive sparsemax",
}
AXES = {"d_sae": "concepts M", "n_tokens": "tokens N", "d_in": "width d"}


def as_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: one row per problem, time and memory of every pass that was measured in any of them."""
    names = [name for name in LABELS if any(f"{name}_time" in row for row in rows)]
    header = ["N", "d", "M", "support", "floor, ms"] + [f"{LABELS[name]}: time, memory" for name in names]
    cells = (
        [str(row["n_tokens"]), row["d_in"], row["d_sae"], row["support"], f"{row['floor_ms']:.0f}"]
        + [_cell(row.get(f"{name}_time"), row.get(f"{name}_memory")) for name in names]
        for row in rows
    )
    return markdown_table(header, cells)


def plot_growth(rows: list[dict[str, Any]], path: Path) -> None:
    """Time over the floor against M, one panel for every support, and against N and d where several were measured."""
    first = rows[0]
    common = [row for row in rows if (row["n_tokens"], row["d_in"]) == (first["n_tokens"], first["d_in"])]
    panels = [
        (f"support {support}", "d_sae", [row for row in common if row["support"] == support])
        for support in sorted({row["support"] for row in common})
    ]
    for key in ("n_tokens", "d_in"):
        if further := [row for row in rows if row[key] != first[key]]:
            size = (further[0]["d_sae"], further[0]["support"])
            at_first = [row for row in common if (row["d_sae"], row["support"]) == size]
            panels.append((f"M = {size[0]:,}, support {size[1]}", key, at_first + further))
    figure = new_figure(3.6 * len(panels), 3.8)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, key, panel) in zip(axes, panels, strict=True):
        for number, (name, label) in enumerate(LABELS.items()):
            points = [(row[key], row[f"{name}_time"]) for row in panel if f"{name}_time" in row]
            if points:
                axis.plot(*zip(*sorted(points), strict=True), label=label, **series_style(number))
        axis.axhline(1, color=QUIET, linewidth=1, linestyle=":", label="score product")
        axis.set(xscale="log", yscale="log")
        style(axis, title, AXES[key], grid="both")
        ticks = sorted({row[key] for row in panel})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False, rotation=30)
        axis.minorticks_off()
        axis.set_yticks([1, 2, 3, 5, 10, 20, 30], ["1", "2", "3", "5", "10", "20", "30"])
    axes[0].set_ylabel("forward + backward / score product", fontsize=SMALL, color=QUIET)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=SMALL, ncols=len(labels), loc="outside upper center", frameon=False)
    save_figure(figure, path)


def _cell(time: float | None, memory: float | None) -> str:
    return "–" if time is None else f"{time:.2f}×, {memory:.2f}"
