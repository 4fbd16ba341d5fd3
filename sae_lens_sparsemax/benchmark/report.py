"""The benchmark's table and picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

LABELS = {
    "sparsemax": "sparsemax (scores)",
    "probabilities": "sparsemax (probabilities)",
    "mlp": "sparsemax (MLP)",
    "topk": "SAELens TopK",
    "topk_sparse": "SAELens TopK, sparse",
    "naive": "naive sparsemax",
}


def as_table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: one row per problem, time and memory of every pass that was measured in any of them."""
    names = [name for name in LABELS if any(f"{name}_time" in row for row in rows)]
    header = ["N", "M", "support", "floor, ms"] + [f"{LABELS[name]}: time, memory" for name in names]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [str(row["n_tokens"]), f"{row['d_sae']:,}", str(row["support"]), f"{row['floor_ms']:.0f}"]
        cells += [_cell(row.get(f"{name}_time"), row.get(f"{name}_memory")) for name in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_growth(rows: list[dict[str, Any]], path: Path) -> None:
    """Time over the floor against M for every support, and against N where several were measured."""
    supports = sorted({row["support"] for row in rows})
    by_tokens = len({row["n_tokens"] for row in rows}) > 1
    figure = Figure(figsize=(4.2 * len(supports), 3.8), layout="constrained")
    axes = figure.subplots(1, len(supports), sharey=True, squeeze=False)[0]
    key, axis_label = ("n_tokens", "tokens per batch") if by_tokens else ("d_sae", "concepts M")
    for axis, support in zip(axes, supports, strict=True):
        for name, label in LABELS.items():
            points = [(r[key], r[f"{name}_time"]) for r in rows if r["support"] == support and f"{name}_time" in r]
            if points:
                axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        axis.axhline(1, color="grey", linewidth=1, linestyle=":", label="score product")
        axis.set(xscale="log", yscale="log", title=f"support {support}", xlabel=axis_label)
        ticks = sorted({row[key] for row in rows})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False, rotation=30)
        axis.minorticks_off()
        axis.set_yticks([1, 2, 3, 5, 10, 20, 30], ["1", "2", "3", "5", "10", "20", "30"])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("forward + backward / score product")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def _cell(time: float | None, memory: float | None) -> str:
    if time is None:
        return "–"
    return f"{time:.2f}×" + ("" if memory is None else f", {memory:.2f}")
