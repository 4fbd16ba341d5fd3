"""How all plots look: colours, sizes of letters, axes, and how they are saved.

Figures are made as objects, never through `pyplot`, so no global matplotlib state is touched; a notebook shows a
figure that a cell ends with.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from sae_lens_sparsemax.files import atomic_write_bytes
from sae_lens_sparsemax.settings.sentences import must_be

# Of the palette by Okabe and Ito, whose colours are told apart with any colour vision and differ in lightness too.
BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"
INK, QUIET, PALE, PALE_BLUE = "#1f2937", "#5b6472", "#e5e7eb", "#9dbfe3"
SMALL, NORMAL, LARGE = 8, 9, 11

# Okabe and Ito's, and three of Tol's. As many as shapes less one, so that a colour never has the same shape twice.
_COLOURS = (
    BLUE, VERMILION, "#009E73", "#CC79A7", ORANGE, "#56B4E9", "#000000", "#999999", "#882255", "#999933", "#332288",
)  # fmt: skip
_MARKERS = "osD^vP*X<>hd"

_DPI = 130
_LONGEST_NAME = 28
_MOST_BARS = 60


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches that lays out its parts without overlap."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(
    n: int, width: float, height: float, *, n_columns: int | None = None, legend: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A figure of n axes, each of a size in inches, in rows of `n_columns` (None for one row), with `legend` inches
    at the right for what belongs to all of them."""
    n_columns = min(n_columns or n, n)
    n_rows = -(-n // n_columns)
    figure = new_figure(width * n_columns + legend, height * n_rows)
    return figure, [figure.add_subplot(n_rows, n_columns, i + 1) for i in range(n)]


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all, and return its path."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DPI)
    atomic_write_bytes(path, png.getvalue())
    return path


def legend(axes: Axes, frameon: bool = True) -> None:
    """A legend where it hides least. By name, for matplotlib warns of its own choice where a busy machine is slow."""
    axes.legend(loc="best", frameon=frameon, fontsize=SMALL)


def style(
    axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "", *, grid: Literal["x", "y", "both"] | None = None
) -> None:
    """Light axes with labels."""
    axes.set_title(title, fontsize=NORMAL, loc="left", color=INK, parse_math=False)
    axes.set_xlabel(xlabel, fontsize=SMALL, color=QUIET)
    axes.set_ylabel(ylabel, fontsize=SMALL, color=QUIET)
    axes.tick_params(labelsize=SMALL, colors=QUIET)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid is not None:
        axes.grid(axis=grid, color=PALE, lw=0.7)


def series_style(number: int) -> dict[str, Any]:
    """Colour and marker of the n-th series, the same in every plot of the same things."""
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}


def log_scale(axes: Axes, axis: Literal["x", "y"], base: float = 10) -> None:
    """A logarithmic axis with plain numbers, at powers of its base alone."""
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log", base=base)
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    chosen.set_minor_formatter(NullFormatter())


def say(axes: Axes, sentence: str) -> None:
    """A sentence where there is nothing to draw."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, sentence, ha="center", va="center", fontsize=NORMAL, color=QUIET, wrap=True, transform=axes.transAxes
    )


def draw_l0_histogram(axes: Axes, counts: Sequence[int] | np.ndarray, title: str, unit: str = "tokens") -> None:
    """How many concepts single tokens (or images) use: the share of each number, with mean, median and spread.

    Args:
        axes: where to draw.
        counts: `counts[k]` tokens have k active concepts; at least one token.
        title: of the axes.
        unit: what was counted.
    """
    counts = np.asarray(counts, dtype=np.int64)
    n, values = int(counts.sum()), np.arange(len(counts))
    mean = float(counts @ values / n)
    # As `np.percentile` interpolates, from the counts: there may be more tokens than numbers fit into memory.
    ranks = np.array([0.05, 0.5, 0.95, 0.995]) * (n - 1)
    low, high = (np.searchsorted(counts.cumsum(), rank, side="right") for rank in (np.floor(ranks), np.ceil(ranks)))
    p5, p50, p95, p99_5 = low + (high - low) * (ranks % 1)
    # A few tokens far out would squeeze all others into one bar.
    lowest, limit = int(counts.nonzero()[0][0]), math.ceil(p99_5)
    width = max(1, -(-(limit - lowest + 1) // _MOST_BARS))
    edges = np.arange(lowest, limit + width + 1, width) - 0.5
    beyond = int(counts[values > edges[-1]].sum())
    axes.hist(values, bins=edges.tolist(), weights=counts / n, color=PALE_BLUE, ec="white", lw=0.4, zorder=2)
    axes.axvspan(p5, p95, color="#eceef1", lw=0, zorder=1, label=f"p5 to p95: {p5:.0f} to {p95:.0f}")
    axes.axvline(p50, color=QUIET, lw=1.3, zorder=3, ls="--", label=f"median {p50:.0f}")
    axes.axvline(mean, color=BLUE, lw=1.6, zorder=3, label=f"mean {mean:.1f}")
    seen = f"{n:,} {unit}" + (f", {beyond:,} beyond the axis" if beyond else "")
    style(axes, title, f"L0  ({seen})", f"share of {unit}", grid="y")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes, frameon=False)


def concept_label(concept: int, names: Mapping[int, str] | None = None) -> str:
    """The number of a concept, and its name with a question mark, since names are guesses."""
    name = (names or {}).get(concept)
    return f"{concept}" if not name else f"{concept} {shortened(name)}?"


def shortened(text: str, length: int = _LONGEST_NAME) -> str:
    """The beginning of a text that is too long for its place."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def as_vector(values: Any, name: str) -> np.ndarray:
    """Values of a tensor, array or list, float64.

    Raises:
        ValueError: they are no numbers, there is more than one dimension, or a value that is not finite.
    """
    try:
        array = torch.as_tensor(values).detach().to("cpu", torch.float64).numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise must_be(name, "a tensor, an array or a list of numbers", values) from error
    if array.ndim != 1:
        raise must_be(name, "of one dimension", array.shape)
    if not np.isfinite(array).all():
        raise must_be(name, "finite everywhere", "NaN or infinite values")
    return array
