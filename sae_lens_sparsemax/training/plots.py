"""Pictures of a training run: curves over the steps, and how many concepts single tokens use.

Figures are made as objects, never through ``pyplot``, so no global matplotlib state is touched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

_LINE, _BAND, _QUIET = "#1f5fa8", "#9dbfe3", "#6b7280"


class _Panel(NamedTuple):
    title: str
    key: str
    band: tuple[str, str] | None = None
    middle: str | None = None
    is_fraction: bool = False
    may_be_log: bool = False
    from_zero: bool = False


_PANELS = (
    _Panel("Loss", "losses/overall_loss", may_be_log=True),
    _Panel("Explained variance", "metrics/explained_variance"),
    _Panel(
        "Active concepts per token (L0)",
        "metrics/l0",
        band=("metrics/l0_p5", "metrics/l0_p95"),
        middle="metrics/l0_p50",
        may_be_log=True,
        from_zero=True,
    ),
    _Panel("Dead concepts", "metrics/dead_fraction", is_fraction=True),
    _Panel("Gate scale g", "metrics/gate_scale", may_be_log=True),
    _Panel("Standard deviation of scores", "metrics/score_std"),
    _Panel("Threshold τ", "metrics/tau"),
    _Panel("Learning rate", "details/current_learning_rate", from_zero=True),
)


def plot_training_curves(metrics_jsonl: Path | str, png: Path | str) -> None:
    """Draw one panel per quantity that ``metrics.jsonl`` holds, over the training step.

    Args:
        metrics_jsonl: file written by ``TrainingLog``.
        png: picture to write.

    Raises:
        ValueError: the file holds none of the known quantities.
    """
    lines = [json.loads(line) for line in Path(metrics_jsonl).read_text(encoding="utf-8").splitlines()]
    panels = [panel for panel in _PANELS if any(line.get(panel.key) is not None for line in lines)]
    if not panels:
        raise ValueError(f"{metrics_jsonl} holds none of the quantities that training curves show.")
    rows = 1 if len(panels) <= 4 else 2
    columns = -(-len(panels) // rows)
    figure = _new_figure(4.1 * columns, 3.0 * rows)
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
        _draw_panel(axes, panel, lines)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    figure.savefig(png, dpi=130)


def plot_l0_histogram(l0_values: torch.Tensor, png: Path | str) -> None:
    """Draw the distribution of the number of active concepts over single tokens.

    Args:
        l0_values: ``(n_tokens,)`` counts.
        png: picture to write.

    Raises:
        ValueError: there are no values.
    """
    counts = l0_values.cpu().numpy().astype(np.int64)
    if counts.size == 0:
        raise ValueError("An L0 histogram needs at least one token.")
    p5, p50, p95 = np.percentile(counts, [5, 50, 95])
    # A few tokens far out would squeeze all others into one bar.
    limit = int(np.percentile(counts, 99.5))
    width = max(1, -(-(limit - int(counts.min()) + 1) // 60))
    edges = np.arange(int(counts.min()), limit + width + 1, width) - 0.5
    beyond = int((counts > edges[-1]).sum())

    figure = _new_figure(7.2, 4.2)
    axes = figure.subplots()
    shares = np.full(counts.size, 1 / counts.size)
    axes.hist(counts, bins=edges.tolist(), weights=shares, color=_BAND, ec="white", lw=0.4, zorder=2)
    axes.axvspan(p5, p95, color="#eceef1", lw=0, zorder=1, label=f"p5 to p95: {p5:.0f} to {p95:.0f}")
    axes.axvline(p50, color=_QUIET, lw=1.3, zorder=3, ls="--", label=f"median {p50:.0f}")
    axes.axvline(counts.mean(), color=_LINE, lw=1.6, zorder=3, label=f"mean {counts.mean():.1f}")
    tokens = f"{counts.size:,} tokens" + (f", {beyond:,} beyond the axis" if beyond else "")
    _style(axes, "Active concepts per token", f"L0  ({tokens})")
    axes.set_ylabel("share of tokens", fontsize=9, color=_QUIET)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(png, dpi=130)


def _draw_panel(axes: Axes, panel: _Panel, lines: list[dict[str, Any]]) -> None:
    steps, values = _column(lines, "step"), _column(lines, panel.key)
    shown = [values]
    if panel.band is not None:
        low, high = (_column(lines, key) for key in panel.band)
        if np.isfinite(low).any() and np.isfinite(high).any():
            axes.fill_between(steps, low, high, color=_BAND, alpha=0.45, lw=0, label="p5 to p95")
            shown += [low, high]
    if panel.middle is not None and np.isfinite(middle := _column(lines, panel.middle)).any():
        axes.plot(steps, middle, color=_QUIET, lw=1.0, ls="--", label="median")
    marker = "o" if np.isfinite(values).sum() == 1 else None
    axes.plot(steps, values, color=_LINE, lw=1.5, marker=marker, label="mean")
    _style(axes, panel.title, "step")
    if panel.key == "metrics/explained_variance":
        # The first steps can be far below zero; the part worth seeing is above.
        axes.set_ylim(bottom=max(np.nanmin(values), -0.1), top=1.0)
    elif panel.is_fraction:
        top = max(0.01, 1.1 * np.nanmax(values))
        axes.set_ylim(bottom=-0.02 * top, top=top)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    elif panel.may_be_log and _spans_decades(np.concatenate(shown)):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter("")
    elif panel.from_zero:
        axes.set_ylim(bottom=0.0)
    if axes.get_legend_handles_labels()[1] != ["mean"]:
        axes.legend(frameon=False, fontsize=8)


def _spans_decades(values: np.ndarray) -> bool:
    """Whether a log axis shows more: all values positive, and the largest over 20 times the smallest."""
    finite = values[np.isfinite(values)]
    return bool((finite > 0).all() and finite.max() > 20 * finite.min())


def _column(lines: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if line.get(key) is None else line[key] for line in lines], dtype=float)


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(xlabel, fontsize=9, color=_QUIET)
    axes.tick_params(labelsize=8, colors=_QUIET)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", lw=0.7)
    axes.set_axisbelow(True)
