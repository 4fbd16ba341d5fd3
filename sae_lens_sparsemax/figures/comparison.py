"""The same image through several SAEs, one row each: how many concepts explain it, and where the top ones are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from sae_lens_sparsemax.display.plots import INK, NORMAL, concept_label, new_figure
from sae_lens_sparsemax.explore.concepts.image import ImageConcepts, Pooling
from sae_lens_sparsemax.figures.patches import draw_patch_mask
from sae_lens_sparsemax.figures.spikes import draw_spikes
from sae_lens_sparsemax.models.encoding import top_concepts

_WIDTH, _ROW = 12.0, 2.7
_SPIKES = 2.6


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
        how: Pooling = "mean",
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
        raise ValueError("A comparison needs at least one SAE.")
    n_masks = max(1, *(len(row.masks) for row in rows))
    figure = new_figure(_WIDTH, _ROW * len(rows) + 0.2)
    grid = figure.add_gridspec(len(rows), n_masks + 2, width_ratios=[1, _SPIKES] + [1] * n_masks)
    photo = figure.add_subplot(grid[:, 0])
    photo.imshow(np.asarray(image.convert("RGB")), interpolation="nearest" if image.width < 100 else None)
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
