"""A concept's activations over a photo, bright and outlined where it fires; and the same photo through several SAEs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sae_lens_sparsemax.data.image_loader import as_rgb
from sae_lens_sparsemax.display.plots import INK, NORMAL, ORANGE, SMALL, concept_label, new_figure
from sae_lens_sparsemax.explore.concepts import ImageConcepts, ImagePooling
from sae_lens_sparsemax.figures.spikes import draw_spikes
from sae_lens_sparsemax.models.encoding import top_concepts
from sae_lens_sparsemax.settings.sentences import must_be

_DARKEST = 0.7
_LONG_SIDE = 4.0
# Of a comparison, in inches; the spikes are so many photos wide.
_WIDTH, _ROW = 12.0, 2.7
_SPIKES = 2.6


def patch_mask(image: Image.Image, mask: Any, *, max_value: float | None = None, title: str = "") -> Figure:
    """A concept's activations laid over the original photo.

    Args:
        image: the photo, of any size.
        mask: `(height, width)` activations over its pixels, from `ImageConcepts.mask` or `PatchGeometry.mask`;
            negative ones count by their size.
        max_value: the activation that is shown as bright as the photo; None for the mask's own maximum. Give the same
            one to compare pictures.
        title: of the figure.

    Raises:
        ValueError: the mask has not the size of the image, or holds values that are not finite.
    """
    width, height = image.size
    scale = _LONG_SIDE / max(width, height)
    figure = new_figure(max(width * scale, 1.5), max(height * scale, 1.0) + (0.3 if title else 0))
    draw_patch_mask(figure.subplots(), image, mask, max_value=max_value, title=title)
    return figure


def draw_patch_mask(
    axes: Axes, image: Image.Image, mask: Any, *, max_value: float | None = None, title: str = "", small: bool = False
) -> None:
    """`patch_mask` on given axes."""
    image = as_rgb(image)
    width, height = image.size
    values = np.abs(np.asarray(mask, dtype=np.float64))
    if values.shape != (height, width):
        raise must_be("mask", f"of the image's shape {(height, width)}", values.shape)
    if not np.isfinite(values).all():
        raise must_be("mask", "finite everywhere", "NaN or infinite values")
    largest = values.max() if max_value is None else max_value
    shown = np.clip(values / largest, 0, 1) if largest > 0 else np.zeros_like(values)
    extent = (0, width, height, 0)
    axes.imshow(np.asarray(image), extent=extent, interpolation="nearest" if width < 100 else None)
    if not shown.any():
        title = f"{title}: on no patch" if title else "on no patch"
    dark = np.zeros((height, width, 4))
    dark[..., 3] = _DARKEST * (1 - shown)
    axes.imshow(dark, extent=extent, interpolation="nearest")
    if shown.max() > 0.5 and shown.min() < 0.5 and min(width, height) > 1:  # a stripe of one pixel has no outline
        x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
        axes.contour(x, y, shown, levels=[0.5], colors=[ORANGE], linewidths=1.2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=SMALL if small else NORMAL, color=INK, parse_math=False)


class ComparedSAE(NamedTuple):
    """One row of a comparison."""

    label: str
    """What the SAE is called in the figure."""
    feature_acts: Any
    """Activations of the image as a whole, `(d_sae,)`."""
    masks: Mapping[int, np.ndarray]
    """For each concept to show, in order, its activations `(height, width)` over the image."""
    names: Mapping[int, str] | None = None
    """Guesses at what concepts are about."""

    @classmethod
    def of(
        cls,
        label: str,
        concepts: ImageConcepts,
        n_top: int = 3,
        *,
        how: ImagePooling = "mean",
        names: Mapping[int, str] | None = None,
    ) -> "ComparedSAE":
        """A row from `concepts_of_image`, with the image's top concepts by `ImageConcepts.of_image(how)`."""
        acts = concepts.of_image(how)
        return cls(label, acts, {concept: concepts.mask(concept) for concept in top_concepts(acts, n_top)}, names)


def comparison_strip(image: Image.Image, rows: Sequence[ComparedSAE]) -> Figure:
    """The image, and for each SAE the activations of all concepts and the masks of its top ones.

    Args:
        image: the photo.
        rows: the SAEs.

    Raises:
        ValueError: there are no SAEs, or a mask has not the image's size.
    """
    if not rows:
        raise must_be("rows", "at least one SAE", rows)
    n_masks = max(1, *(len(row.masks) for row in rows))
    figure = new_figure(_WIDTH, _ROW * len(rows) + 0.2)
    grid = figure.add_gridspec(len(rows), n_masks + 2, width_ratios=[1, _SPIKES] + [1] * n_masks)
    photo = figure.add_subplot(grid[:, 0])
    image = as_rgb(image)
    photo.imshow(np.asarray(image), interpolation="nearest" if image.width < 100 else None)
    photo.set_axis_off()
    photo.set_title("image", fontsize=NORMAL, color=INK)
    share = _SPIKES / (1 + _SPIKES + n_masks) * _WIDTH / 8
    for index, row in enumerate(rows):
        spikes = figure.add_subplot(grid[index, 1])
        draw_spikes(
            spikes, row.feature_acts, max(len(row.masks), 1), names=row.names, title=row.label, share_of_width=share
        )
        for column, (concept, mask) in enumerate(row.masks.items()):
            axes = figure.add_subplot(grid[index, column + 2])
            draw_patch_mask(axes, image, mask, title=concept_label(concept, row.names), small=True)
    return figure
