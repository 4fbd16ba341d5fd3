"""One concept on one card: what it fires on most, how strongly, and what that is about."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from PIL import Image
from sae_lens import SAE

from sae_lens_sparsemax.display.plots import (
    BLUE,
    INK,
    LARGE,
    ORANGE,
    QUIET,
    SMALL,
    as_vector,
    concept_label,
    new_figure,
    say,
    shortened,
    style,
)
from sae_lens_sparsemax.figures.inputs import references
from sae_lens_sparsemax.figures.photos import draw_patch_mask
from sae_lens_sparsemax.figures.shaded_text import draw_shaded_text, line_height, shown
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.models.vision_at_hook import reads_images
from sae_lens_sparsemax.settings.sentences import must_be

_WIDTH = 9.0
_PER_ROW = 5
_LINES_PER_CONTEXT = 2
_CONTEXTS = 8
_FONT_SIZE = 8.0
# Inches.
_MARGIN, _HEADLINE, _CHARTS = 0.1, 0.62, 2.3
_LONGEST_LIST = 8


def image_concept_card(
    concept: int,
    images: Sequence[Image.Image] | None = None,
    masks: Sequence[Any] = (),
    activations: Any = None,
    *,
    sae: SAE[Any] | str | Path | None = None,
    n_seen: int | None = None,
    class_counts: Mapping[str, int] | None = None,
    name: str | None = None,
) -> Figure:
    """A concept of a vision SAE: reference images with patch masks, histogram of activations, classes.

    Args:
        concept: its number.
        images: the images it fires on most, first the one it fires on most; none for a dead concept. Left out, images,
            masks, activations, n_seen and class_counts are gathered by `references` from the data of `sae`.
        masks: for each image its activations `(height, width)`, from `ImageConcepts.mask`.
        activations: `(n,)` activations over the tokens or images seen, given with the images; zeros are left out.
        sae: the SAE, its folder, or `release_or_repo:id`, where nothing else is given.
        n_seen: how many tokens or images were seen, to say how often the concept is active.
        class_counts: how many of the images it fires on are of each class.
        name: a guess at what it is about.

    Raises:
        ValueError: not one mask for each image, a mask of another size, or activations that are no numbers.
    """
    if images is None:
        found = _gathered(concept, sae, "images", _PER_ROW)
        images, masks, activations = found.images, found.masks, found.activations
        n_seen, class_counts = found.n_seen, found.class_counts
    assert images is not None
    if len(images) != len(masks):
        raise must_be("masks", f"as many as the {len(images)} images", len(masks))
    acts = _active(activations)
    if len(acts) == 0:
        return _dead_card(concept, n_seen)
    rows = -(-len(images) // _PER_ROW)
    figure = new_figure(_WIDTH, 2.6 + 1.9 * rows)
    _headline(figure, concept, acts, n_seen, name)
    grid = figure.add_gridspec(rows + 1, 1, height_ratios=[1.9] * rows + [2.0])
    largest = max((float(np.abs(mask).max()) for mask in masks), default=0.0)
    for row in range(rows):
        cells = grid[row, 0].subgridspec(1, _PER_ROW)
        for column in range(_PER_ROW):
            axes = figure.add_subplot(cells[0, column])
            index = row * _PER_ROW + column
            if index >= len(images):
                axes.set_axis_off()
                continue
            peak = float(np.abs(masks[index]).max())
            draw_patch_mask(axes, images[index], masks[index], max_value=largest, title=f"max {peak:.3g}", small=True)
    below = grid[rows, 0].subgridspec(1, 2, width_ratios=[1, 1])
    _histogram(figure.add_subplot(below[0, 0]), acts)
    axes = figure.add_subplot(below[0, 1])
    if class_counts:
        _bars(axes, "Classes it fires on", _most_first(class_counts), "images")
    else:
        say(axes, "No class is known.")
    return figure


def text_concept_card(
    concept: int,
    contexts: Sequence[tuple[Sequence[str], Any]] | None = None,
    activations: Any = None,
    *,
    sae: SAE[Any] | str | Path | None = None,
    n_seen: int | None = None,
    promoted: Sequence[tuple[str, float]] = (),
    suppressed: Sequence[tuple[str, float]] = (),
    name: str | None = None,
) -> Figure:
    """A concept of a language model's SAE: shaded contexts, histogram of activations, tokens it promotes.

    Args:
        concept: its number.
        contexts: tokens and activations `(n_tokens,)` of the texts it fires on most; none for a dead concept. Left out,
            all but the name are gathered by `references` from the data of `sae`.
        activations: `(n,)` activations over the tokens seen, given with the contexts; zeros are left out.
        sae: the SAE, its folder, or `release_or_repo:id`, where nothing else is given.
        n_seen: how many tokens were seen, to say how often the concept is active.
        promoted: tokens and the change of their logits along the concept's decoder row, most promoted first.
        suppressed: the same, most suppressed first.
        name: a guess at what it is about.

    Raises:
        ValueError: not one activation for each token, or activations that are no numbers.
    """
    if contexts is None:
        contexts, activations, n_seen, promoted, suppressed = _gathered(concept, sae, "contexts", _CONTEXTS)
    assert contexts is not None
    acts = _active(activations)
    if len(acts) == 0:
        return _dead_card(concept, n_seen)
    context_height = (_LINES_PER_CONTEXT + 0.6) * line_height(_FONT_SIZE)
    text_height = _HEADLINE + len(contexts) * context_height
    figure = new_figure(_WIDTH, text_height + _CHARTS)
    grid = figure.add_gridspec(2, 1, height_ratios=[text_height, _CHARTS])
    above, below = (figure.add_subfigure(grid[row, 0]) for row in (0, 1))
    _headline(above, concept, acts, n_seen, name)
    largest = max((float(np.abs(as_vector(values, "activations")).max(initial=0)) for _, values in contexts), default=0)
    for row, (tokens, values) in enumerate(contexts):
        # Placed by hand: the characters need axes of a known width.
        bottom = 1 - (_HEADLINE + (row + 1) * context_height) / text_height
        axes = above.add_axes((_MARGIN / _WIDTH, bottom, 1 - 2 * _MARGIN / _WIDTH, context_height / text_height))
        draw_shaded_text(
            axes,
            tokens,
            values,
            max_value=largest,
            width=_WIDTH - 2 * _MARGIN,
            max_lines=_LINES_PER_CONTEXT,
            font_size=_FONT_SIZE,
        )
    charts = below.subplots(1, 3)
    _histogram(charts[0], acts)
    for axes, title, tokens, color in (
        (charts[1], "Promotes", promoted, ORANGE),
        (charts[2], "Suppresses", suppressed, BLUE),
    ):
        if tokens:
            _bars(axes, title, [(f"‹{shown(token)}›", value) for token, value in tokens], "change of logit", color)
        else:
            axes.set_axis_off()
    return figure


def _gathered(concept: int, sae: SAE[Any] | str | Path | None, name: str, n: int) -> Any:
    """What `references` finds for one concept, if it is of the kind that the card shows."""
    if sae is None:
        raise must_be(name, "given, or sae, to gather them from its data", None)
    opened = load_sae(str(sae)) if isinstance(sae, str | Path) else sae
    if reads_images(opened) != (name == "images"):
        raise must_be("sae", f"one whose examples are {name}", sae)
    return references(opened, [concept], n)[concept]


def _most_first(counts: Mapping[str, int]) -> list[tuple[str, float]]:
    return sorted(((label, float(count)) for label, count in counts.items()), key=lambda pair: -pair[1])


def _active(activations: Any) -> np.ndarray:
    acts = as_vector(activations, "activations")
    return acts[acts != 0]


def _headline(figure: FigureBase, concept: int, acts: np.ndarray, n_seen: int | None, name: str | None) -> None:
    label = concept_label(concept, {concept: name} if name else None)
    title = f"Concept {label}" + (" (the name is a guess)" if name else "")
    often = (
        f"active on {len(acts):,} of {n_seen:,} ({len(acts) / n_seen:.2%})" if n_seen else f"active {len(acts):,} times"
    )
    figure.suptitle(
        f"{title}\n{often}, at most {np.abs(acts).max():.3g}",
        x=0.01,
        ha="left",
        fontsize=LARGE,
        color=INK,
        parse_math=False,
    )


def _dead_card(concept: int, n_seen: int | None) -> Figure:
    figure = new_figure(_WIDTH, 1.2)
    figure.suptitle(f"Concept {concept}", x=0.01, ha="left", fontsize=LARGE, color=INK)
    seen = f" among the {n_seen:,} it was looked for in" if n_seen else ""
    say(figure.subplots(), f"This concept is dead: it was active nowhere{seen}.")
    return figure


def _histogram(axes: Axes, acts: np.ndarray) -> None:
    style(axes, "Activations where it is active", "activation", "how often")
    axes.hist(acts, bins=min(40, max(5, len(acts) // 5)), color=BLUE, ec="white", lw=0.4)
    axes.locator_params(axis="y", integer=True, nbins=5)


def _bars(axes: Axes, title: str, pairs: Sequence[tuple[str, float]], unit: str, color: str = BLUE) -> None:
    """Horizontal bars, the first on top."""
    pairs = list(pairs)[:_LONGEST_LIST]
    style(axes, title, unit)
    places = range(len(pairs))
    axes.barh(places, [value for _, value in pairs], color=color, height=0.7)
    axes.set_yticks(places, [shortened(label, 22) for label, _ in pairs], fontsize=SMALL, color=INK, parse_math=False)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.axvline(0, color=QUIET, lw=0.6)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
