"""A concept's activations over a photo: bright and outlined where it fires, dark where it does not."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sae_lens_sparsemax.display.plots import INK, NORMAL, ORANGE, SMALL, new_figure

_DARKEST = 0.7
_LONG_SIDE = 4.0


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
    width, height = image.size
    values = np.abs(np.asarray(mask, dtype=np.float64))
    if values.shape != (height, width):
        raise ValueError(f"The mask has shape {values.shape}, but the image is {height} pixels high and {width} wide.")
    if not np.isfinite(values).all():
        raise ValueError("The mask holds values that are not finite.")
    largest = values.max() if max_value is None else max_value
    shown = np.clip(values / largest, 0, 1) if largest > 0 else np.zeros_like(values)
    extent = (0, width, height, 0)
    axes.imshow(np.asarray(image.convert("RGB")), extent=extent, interpolation="nearest" if width < 100 else None)
    if not shown.any():
        title = f"{title}: on no patch" if title else "on no patch"
    dark = np.zeros((height, width, 4))
    dark[..., 3] = _DARKEST * (1 - shown)
    axes.imshow(dark, extent=extent, interpolation="nearest")
    if shown.max() > 0.5 and shown.min() < 0.5:
        x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
        axes.contour(x, y, shown, levels=[0.5], colors=[ORANGE], linewidths=1.2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=SMALL if small else NORMAL, color=INK, parse_math=False)
