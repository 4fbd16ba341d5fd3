"""How all figures look: colours, sizes of letters, labels of concepts.

Figures are made as objects, never through `pyplot`, so no global matplotlib state is touched; a notebook shows a
figure that a cell ends with.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Blue, orange and vermilion of the palette by Okabe and Ito, which differ in lightness too.
BLUE, ORANGE, VERMILION = "#0072B2", "#E69F00", "#D55E00"
INK, QUIET, PALE = "#1f2937", "#5b6472", "#e5e7eb"
SMALL, NORMAL, LARGE = 8, 9, 11

_LONGEST_NAME = 28


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches that lays out its parts without overlap."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Light axes with labels."""
    axes.set_title(title, fontsize=NORMAL, loc="left", color=INK, parse_math=False)
    axes.set_xlabel(xlabel, fontsize=SMALL, color=QUIET)
    axes.set_ylabel(ylabel, fontsize=SMALL, color=QUIET)
    axes.tick_params(labelsize=SMALL, colors=QUIET)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def say(axes: Axes, sentence: str) -> None:
    """A sentence where there is nothing to draw."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, sentence, ha="center", va="center", fontsize=NORMAL, color=QUIET, wrap=True, transform=axes.transAxes
    )


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
        ValueError: there is more than one dimension, or a value that is not finite.
    """
    array = torch.as_tensor(values).detach().to("cpu", torch.float64).numpy()
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, but has shape {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite.")
    return array
