"""Where the patches of a vision transformer lie in the original image, given the image processor's resize and crop.

A processor resizes an image, often without keeping its aspect ratio to the last pixel, and may then cut out its
centre or pad it. The patch grid covers what is left. The sizes are asked of `transformers` itself; the offset of the
crop follows its two backends, which round it differently where they pad.
But: processors with steps of their own (tiling, padding to a size, a crop ratio) are refused rather than guessed.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
from transformers.image_utils import ChannelDimension, get_image_size_for_max_height_width

from sae_lens_sparsemax.settings.sentences import must_be, must_be_one_of

Interpolation = Literal["nearest", "bilinear"]


class Box(NamedTuple):
    """A rectangle in pixels of the original image, from its top left corner; a pixel is one unit wide."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class PatchGeometry:
    """The patch grid of one image size: patch indices count row by row, without the tokens before the patches."""

    image_size: tuple[int, int]
    """Width and height of the original image, as `PIL.Image.size` gives them."""
    resized_size: tuple[int, int]
    """Width and height after the processor's resize."""
    crop_offset: tuple[int, int]
    """Left and top of the crop in the resized image; negative where the image is padded."""
    patch_size: int
    """Side of a patch in processed pixels."""
    grid: tuple[int, int]
    """Rows and columns of patches."""

    @property
    def n_patches(self) -> int:
        """How many patches there are."""
        return self.grid[0] * self.grid[1]

    @property
    def box(self) -> Box:
        """What the whole grid covers; it reaches beyond the image where the processor padded."""
        (rows, columns), size = self.grid, self.patch_size
        dx, dy = self.crop_offset

        def original(at: int, axis: int) -> float:
            # Whole numbers are multiplied first, so that an edge on a pixel's is exactly there.
            return at * self.image_size[axis] / self.resized_size[axis]

        return Box(original(dx, 0), original(dy, 1), original(columns * size + dx, 0), original(rows * size + dy, 1))

    def mask(self, patch_values: torch.Tensor | np.ndarray, interpolation: Interpolation = "nearest") -> np.ndarray:
        """Values of the patches, such as activations of a concept, as an image over the original one.

        Args:
            patch_values: `(n_patches,)` or `(rows, columns)`, prefix tokens left out.
            interpolation: `"nearest"` gives each pixel its patch's value, `"bilinear"` blends between the patches'
                centres.

        Returns:
            `(height, width)` float32; 0 where no patch looks.

        Raises:
            ValueError: another number of values, or another interpolation.
        """
        if interpolation not in get_args(Interpolation):
            raise must_be_one_of("interpolation", interpolation, get_args(Interpolation))
        values = torch.as_tensor(patch_values).detach().to("cpu", torch.float32)
        if values.shape not in [(self.n_patches,), self.grid]:
            shapes = f"of shape {(self.n_patches,)} or {self.grid}, without the tokens before the patches"
            raise must_be("patch_values", shapes, tuple(values.shape))
        axes = [self._grid_position(np.arange(n_pixels) + 0.5, axis) for axis, n_pixels in enumerate(self.image_size)]
        covered = [(at >= 0) & (at < n) for at, n in zip(axes, reversed(self.grid), strict=True)]
        if interpolation == "nearest":  # of a pixel between two patches, the second
            axes = [np.floor(at) + 0.5 for at in axes]
        x, y = (torch.from_numpy(2 * at / n - 1).float() for at, n in zip(axes, reversed(self.grid), strict=True))
        # Beyond the centres of the outermost patches there is nothing to blend with: their own value stays.
        sampled = torch.nn.functional.grid_sample(
            values.reshape(1, 1, *self.grid),
            torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None],
            mode=interpolation,
            padding_mode="border",
            align_corners=False,
        )
        return sampled[0, 0].numpy() * np.outer(covered[1], covered[0])

    def _grid_position(self, pixel: Any, axis: int) -> Any:
        """From original pixels to patches, along x (axis 0) or y (axis 1)."""
        processed = pixel * self.resized_size[axis] / self.image_size[axis] - self.crop_offset[axis]
        return processed / self.patch_size


def patch_geometry(image_processor: Any, image_size: tuple[int, int], patch_size: int) -> PatchGeometry:
    """The patch grid over an image of a given size.

    Args:
        image_processor: of `transformers`: CLIP, SigLIP, DINOv2 (BiT), ViT, DeiT or another that resizes and crops
            in the same way.
        image_size: width and height of the original image, as `PIL.Image.size` gives them.
        patch_size: side of the model's patches, `HookedViT.cfg.patch_size`.

    Raises:
        ValueError: the processor does something else too, or leaves less than one patch.
    """
    backend = _backend(image_processor)
    width, height = image_size
    if width < 1 or height < 1:
        raise must_be("image_size", "at least one pixel in both directions", image_size)
    resized_height, resized_width = _resized(image_processor, height, width)
    processed_height, processed_width = resized_height, resized_width
    left = top = 0
    if getattr(image_processor, "do_center_crop", None):
        processed_height, processed_width = image_processor.crop_size.height, image_processor.crop_size.width
        left = _crop_offset(resized_width, processed_width, backend)
        top = _crop_offset(resized_height, processed_height, backend)
    # A convolution of stride patch_size leaves what does not fill a patch at the right and the bottom unseen.
    grid = processed_height // patch_size, processed_width // patch_size
    if min(grid) < 1:
        raise ValueError(
            f"An image of {width} x {height} pixels is processed to {processed_width} x {processed_height}, which is "
            f"less than one patch of {patch_size} pixels."
        )
    return PatchGeometry((width, height), (resized_width, resized_height), (left, top), patch_size, grid)


def _backend(processor: Any) -> type:
    """The backend whose steps the processor takes unchanged."""
    for backend in (PilBackend, TorchvisionBackend):
        if isinstance(processor, backend):
            changed = [
                name
                for name in ("_preprocess", "resize", "center_crop")
                if getattr(type(processor), name) is not getattr(backend, name)
            ]
            if not changed and not getattr(processor, "do_pad", None):
                return backend
    raise ValueError(
        f"It is not known where {type(processor).__name__} puts the patches: only image processors of transformers "
        "that resize, crop the centre and do nothing else to the geometry can be followed."
    )


def _resized(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Height and width after the resize."""
    size = processor.size
    if not processor.do_resize:
        return height, width
    if size.shortest_edge and size.longest_edge:
        resized = get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    elif size.shortest_edge:
        # The function reads the shape alone, so no pixels are made for it.
        blank = np.broadcast_to(np.uint8(0), (1, height, width))
        resized = get_resize_output_image_size(
            blank, size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
    elif size.max_height and size.max_width:
        resized = get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    else:
        resized = size.height, size.width
    return int(resized[0]), int(resized[1])


def _crop_offset(resized: int, crop: int, backend: type) -> int:
    """Where the crop begins along one axis. Of an odd amount of padding, PIL's backend puts the extra pixel before
    the image and torchvision's behind it."""
    if backend is PilBackend:
        return (resized - crop) // 2
    return int((resized - crop) / 2)
