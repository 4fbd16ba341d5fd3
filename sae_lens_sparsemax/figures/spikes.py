"""The activations of all concepts at once, as spikes over their numbers, with the largest ones marked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_lens_sparsemax.display.plots import (
    BLUE,
    INK,
    NORMAL,
    QUIET,
    SMALL,
    VERMILION,
    as_vector,
    concept_label,
    new_figure,
    say,
    style,
)

_WIDTH, _HEIGHT = 8.0, 3.2
# Room for one slanted label, as a share of a plot of _WIDTH inches.
_LABEL_SPACING = 0.045


def activation_spikes(
    feature_acts: Any, n_top: int = 5, *, names: Mapping[int, str] | None = None, title: str = ""
) -> Figure:
    """Activations of one image or token over all concepts.

    Args:
        feature_acts: `(d_sae,)` tensor or array; zeros are not drawn.
        n_top: how many of the largest are marked with their number.
        names: guesses at what concepts are about, shown with a question mark.
        title: of the figure; the number of active concepts is added.

    Raises:
        ValueError: another number of dimensions, or values that are not finite.
    """
    figure = new_figure(_WIDTH, _HEIGHT)
    draw_spikes(figure.subplots(), feature_acts, n_top, names=names, title=title)
    return figure


def draw_spikes(
    axes: Axes,
    feature_acts: Any,
    n_top: int,
    *,
    names: Mapping[int, str] | None = None,
    title: str = "",
    share_of_width: float = 1.0,
) -> list[int]:
    """`activation_spikes` on given axes, which take up `share_of_width` of the usual width; returns the concepts
    marked, largest first."""
    acts = as_vector(feature_acts, "feature_acts")
    active = np.flatnonzero(acts)
    count = f"{len(active):,} of {len(acts):,} concepts active"
    style(axes, f"{title}: {count}" if title else count, "concept", "activation")
    if len(active) == 0:
        say(axes, "No concept is active here.")
        return []
    top = active[np.argsort(-np.abs(acts[active]), kind="stable")][:n_top]
    others = np.setdiff1d(active, top)
    axes.vlines(others, 0, acts[others], color=BLUE, lw=0.9)
    axes.vlines(top, 0, acts[top], color=VERMILION, lw=1.6)
    axes.plot(top, acts[top], "o", color=VERMILION, ms=4)
    axes.axhline(0, color=QUIET, lw=0.6)
    margin = 0.01 * len(acts)
    axes.set_xlim(-margin, len(acts) - 1 + margin)
    low, high = min(acts.min(), 0), max(acts.max(), 0)
    axes.set_ylim(low * 1.05, high * 1.08 if high > 0 else -0.05 * low)
    _label(axes, np.sort(top), acts, names, _LABEL_SPACING / share_of_width)
    return top.tolist()


def _label(axes: Axes, concepts: np.ndarray, acts: np.ndarray, names: Mapping[int, str] | None, spacing: float) -> None:
    """Slanted labels above the axes, in the order of the concepts, moved apart where they would collide."""
    left, right = axes.get_xlim()
    places = _spread((concepts - left) / (right - left), spacing)
    for concept, place in zip(concepts.tolist(), places, strict=True):
        axes.annotate(
            concept_label(concept, names),
            (concept, acts[concept]),
            (place, 1.03),
            textcoords="axes fraction",
            fontsize=SMALL,
            color=INK,
            rotation=35,
            rotation_mode="anchor",
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": QUIET, "lw": 0.6, "relpos": (0, 0), "shrinkA": 0, "shrinkB": 3},
        )
    if len(concepts):
        # The title goes above the labels: as high as the longest of them reaches.
        longest = max(len(concept_label(concept, names)) for concept in concepts.tolist())
        axes.set_title(
            axes.get_title(loc="left"), loc="left", fontsize=NORMAL, color=INK, pad=16 + 2.9 * longest, parse_math=False
        )


def _spread(wanted: np.ndarray, spacing: float) -> np.ndarray:
    """Places in [0, 1], in the same order, at least `spacing` apart, close to the wanted ones; evenly spread where
    there is no room for that."""
    spacing = min(spacing, 1 / max(len(wanted) - 1, 1))
    places = wanted.clip(0, 1)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + spacing)
    if len(places):
        places[-1] = min(places[-1], 1.0)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - spacing)
    return places.clip(0, 1)
