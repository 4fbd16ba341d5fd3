"""Pictures of a training run: curves over the steps, and how many concepts single tokens use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from sae_lens_sparsemax.display.plots import (
    BLUE,
    PALE_BLUE,
    QUIET,
    SMALL,
    draw_l0_histogram,
    log_scale,
    panels,
    save_figure,
    style,
)


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
    drawn = [panel for panel in _PANELS if any(line.get(panel.key) is not None for line in lines)]
    if not drawn:
        raise ValueError(f"{metrics_jsonl} holds none of the quantities that training curves show.")
    n_rows = 1 if len(drawn) <= 4 else 2
    figure, all_axes = panels(len(drawn), 4.1, 3.0, n_columns=-(-len(drawn) // n_rows))
    for axes, panel in zip(all_axes, drawn, strict=True):
        _draw_panel(axes, panel, lines)
    save_figure(figure, Path(png))


def plot_l0_histogram(l0_values: torch.Tensor, png: Path | str) -> None:
    """Draw the distribution of the number of active concepts over single tokens.

    Args:
        l0_values: ``(n_tokens,)`` counts.
        png: picture to write.

    Raises:
        ValueError: there are no values.
    """
    if not len(l0_values):
        raise ValueError("An L0 histogram needs at least one token.")
    figure, (axes,) = panels(1, 7.2, 4.2)
    draw_l0_histogram(axes, torch.bincount(l0_values.cpu().long()).numpy(), "Active concepts per token")
    save_figure(figure, Path(png))


def _draw_panel(axes: Axes, panel: _Panel, lines: list[dict[str, Any]]) -> None:
    steps, values = _column(lines, "step"), _column(lines, panel.key)
    shown = [values]
    if panel.band is not None:
        low, high = (_column(lines, key) for key in panel.band)
        if np.isfinite(low).any() and np.isfinite(high).any():
            axes.fill_between(steps, low, high, color=PALE_BLUE, alpha=0.45, lw=0, label="p5 to p95")
            shown += [low, high]
    if panel.middle is not None and np.isfinite(middle := _column(lines, panel.middle)).any():
        axes.plot(steps, middle, color=QUIET, lw=1.0, ls="--", label="median")
    marker = "o" if np.isfinite(values).sum() == 1 else None
    axes.plot(steps, values, color=BLUE, lw=1.5, marker=marker, label="mean")
    style(axes, panel.title, "step", grid="y")
    if panel.key == "metrics/explained_variance":
        # The first steps can be far below zero; the part worth seeing is above.
        axes.set_ylim(bottom=max(np.nanmin(values), -0.1), top=1.0)
    elif panel.is_fraction:
        top = max(0.01, 1.1 * np.nanmax(values))
        axes.set_ylim(bottom=-0.02 * top, top=top)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    elif panel.may_be_log and _spans_decades(np.concatenate(shown)):
        log_scale(axes, "y")
    elif panel.from_zero:
        axes.set_ylim(bottom=0.0)
    if axes.get_legend_handles_labels()[1] != ["mean"]:
        axes.legend(frameon=False, fontsize=SMALL)


def _spans_decades(values: np.ndarray) -> bool:
    """Whether a log axis shows more: all values positive, and the largest over 20 times the smallest."""
    finite = values[np.isfinite(values)]
    return bool((finite > 0).all() and finite.max() > 20 * finite.min())


def _column(lines: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if line.get(key) is None else line[key] for line in lines], dtype=float)
