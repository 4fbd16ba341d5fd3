"""Patches against what the processors really do: pixels that carry their own coordinates, and a bright region."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend

from sae_lens_sparsemax.models.patch_geometry import Box, PatchGeometry, _crop_offset, patch_geometry

_PATCH = 8
_UNCHANGED = {"do_rescale": False, "do_normalize": False, "resample": Image.Resampling.NEAREST}
_PROCESSORS = {
    "clip": transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, **_UNCHANGED),
    "clip, odd crop": transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=35, **_UNCHANGED),
    "clip, padded": transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=33, **_UNCHANGED),
    "clip, not resized": transformers.CLIPImageProcessor(do_resize=False, crop_size=32, **_UNCHANGED),
    "clip, not cropped": transformers.CLIPImageProcessor(
        size={"shortest_edge": 24}, do_center_crop=False, **_UNCHANGED
    ),
    "dinov2": transformers.BitImageProcessor(size={"shortest_edge": 37}, crop_size=32, **_UNCHANGED),
    "longest edge": transformers.CLIPImageProcessor(
        size={"shortest_edge": 32, "longest_edge": 48}, crop_size=32, **_UNCHANGED
    ),
    "within a box": transformers.ViTImageProcessor(size={"max_height": 32, "max_width": 40}, **_UNCHANGED),
    "siglip": transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, **_UNCHANGED),
    "vit, not square": transformers.ViTImageProcessor(size={"height": 24, "width": 40}, **_UNCHANGED),
}


def coordinates(width: int, height: int) -> Image.Image:
    """An image below 256 pixels whose red is x and green is y; blue marks that there is an image."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.full_like(x, 255)], axis=-1).astype(np.uint8))


def box_of(geometry: PatchGeometry, index: int) -> Box:
    """What one patch covers of the original image."""
    row, column = divmod(index, geometry.grid[1])
    (left, top), size = geometry.crop_offset, geometry.patch_size
    return replace(geometry, crop_offset=(left + column * size, top + row * size), grid=(1, 1)).box


def processed(processor, image: Image.Image) -> np.ndarray:
    return processor([image], return_tensors="np")["pixel_values"][0]


@pytest.mark.parametrize("name", _PROCESSORS)
@given(width=st.integers(8, 120), height=st.integers(8, 120))
@example(width=32, height=32)
@example(width=119, height=17)
@example(width=9, height=100)
@example(width=23, height=72)
@settings(max_examples=25, deadline=None)
def test_each_patch_holds_the_pixels_of_its_box(name, width, height):
    pixels = processed(_PROCESSORS[name], coordinates(width, height))
    if min(pixels.shape[1:]) < _PATCH:
        with pytest.raises(ValueError, match="less than one patch"):
            patch_geometry(_PROCESSORS[name], (width, height), _PATCH)
        return
    geometry = patch_geometry(_PROCESSORS[name], (width, height), _PATCH)
    rows, columns = pixels.shape[1] // _PATCH, pixels.shape[2] // _PATCH
    assert geometry.grid == (rows, columns)
    for index in range(geometry.n_patches):
        row, column = divmod(index, columns)
        patch = pixels[:, row * _PATCH : (row + 1) * _PATCH, column * _PATCH : (column + 1) * _PATCH]
        x, y, there = patch.reshape(3, -1)
        left, top, right, bottom = box_of(geometry, index)
        if not there.any():
            assert right <= 0 or bottom <= 0 or left >= width or top >= height
            continue
        x, y = x[there > 0], y[there > 0]
        # All pixels seen touch the box, and they reach to its edges, up to what a single sample misses.
        assert (x + 1 > left).all() and (x < right).all() and (y + 1 > top).all() and (y < bottom).all()
        step_x, step_y = 1 + width / geometry.resized_size[0], 1 + height / geometry.resized_size[1]
        assert x.min() - max(left, 0) < step_x and min(right, width) - x.max() - 1 < step_x
        assert y.min() - max(top, 0) < step_y and min(bottom, height) - y.max() - 1 < step_y


@given(
    name=st.sampled_from(sorted(_PROCESSORS)),
    width=st.integers(100, 400),
    height=st.integers(100, 400),
    x=st.floats(0, 1, exclude_max=True),
    y=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=200, deadline=None)
def test_a_pixel_has_the_value_of_the_patch_whose_box_it_is_in_and_none_outside(name, width, height, x, y):
    geometry = patch_geometry(_PROCESSORS[name], (width, height), _PATCH)
    column, row = int(x * width), int(y * height)
    value = int(geometry.mask(np.arange(1, geometry.n_patches + 1))[row, column])
    box = box_of(geometry, value - 1) if value else geometry.box
    x, y, near = column + 0.5, row + 0.5, 1e-6 * max(width, height)
    if value:
        assert box.left - near <= x <= box.right + near and box.top - near <= y <= box.bottom + near
    else:
        assert not (box.left + near < x < box.right - near and box.top + near < y < box.bottom - near)


@pytest.mark.parametrize("name", _PROCESSORS)
@pytest.mark.parametrize("size", [(150, 90), (64, 180), (100, 100)])
def test_the_mask_of_what_patches_see_lies_over_the_bright_region(name, size):
    geometry = patch_geometry(_PROCESSORS[name], size, _PATCH)
    width, height = size
    # A region of two by two patches, drawn into the original, so that single patches cannot hide an offset.
    middle = geometry.grid[1] * (geometry.grid[0] // 2) + geometry.grid[1] // 2
    corner = middle - geometry.grid[1] - 1
    left, top = (round(edge) for edge in box_of(geometry, corner)[:2])
    right, bottom = (round(edge) for edge in box_of(geometry, middle)[2:])
    bright = np.zeros((height, width), dtype=np.uint8)
    bright[max(top, 0) : bottom, max(left, 0) : right] = 255
    seen = processed(_PROCESSORS[name], Image.fromarray(bright).convert("RGB"))[0]
    rows, columns = geometry.grid
    seen = seen[: rows * _PATCH, : columns * _PATCH].reshape(rows, _PATCH, columns, _PATCH).mean(axis=(1, 3))
    for interpolation, least in (("nearest", 0.9), ("bilinear", 0.5)):
        mask = geometry.mask(seen, interpolation)
        assert mask.shape == bright.shape and mask.dtype == np.float32
        lit, truth = mask > mask.max() / 2, bright > 0
        assert (lit & truth).sum() / (lit | truth).sum() > least
        y, x = np.nonzero(lit)
        true_y, true_x = np.nonzero(truth)
        assert abs(x.mean() - true_x.mean()) < 0.03 * width and abs(y.mean() - true_y.mean()) < 0.03 * height


def test_the_mask_is_zero_where_the_crop_cuts_off_and_each_patchs_value_within_it():
    geometry = patch_geometry(_PROCESSORS["clip"], (96, 64), _PATCH)  # resized to 48 x 32, cropped to the middle 32
    assert geometry.box == (16, 0, 80, 64)
    mask = geometry.mask(np.arange(1, 17))
    assert (mask[:, :16] == 0).all() and (mask[:, 80:] == 0).all()
    assert (mask[:16, 16:32] == 1).all() and (mask[16:32, 16:32] == 5).all() and (mask[48:, 64:80] == 16).all()
    blended = geometry.mask(np.arange(1, 17).reshape(4, 4), "bilinear")
    assert blended[0, 16] == 1 and blended[63, 79] == 16
    assert np.allclose(blended[7, 24:72], 1 + (np.arange(0.5, 48) / 16))


def test_an_image_smaller_than_the_crop_is_padded():
    geometry = patch_geometry(_PROCESSORS["clip, not resized"], (11, 20), _PATCH)
    assert geometry.box == (-11, -6, 21, 26)  # the odd pixel of padding goes before the image
    mask = geometry.mask(np.arange(16))
    assert mask[0, 0] == 1 and mask[19, 10] == 14


def test_torchvisions_backend_puts_the_odd_pixel_of_padding_behind():
    assert [_crop_offset(n, 32, TorchvisionBackend) for n in (11, 12, 32, 33, 35)] == [-10, -10, 0, 0, 1]


def test_the_grid_is_that_of_the_model(mini_clip):
    geometry = patch_geometry(mini_clip.image_processor, (300, 200), mini_clip.cfg.patch_size)
    assert geometry.n_patches + mini_clip.cfg.n_prefix_tokens == mini_clip.cfg.n_ctx
    assert geometry.box == (50, 0, 250, 200)


def test_what_cannot_be_followed_is_refused():
    clip = _PROCESSORS["clip"]
    for processor in (
        transformers.ConvNextImageProcessor(),
        transformers.Siglip2ImageProcessor(),
        transformers.ViTImageProcessor(do_pad=True, pad_size={"height": 300, "width": 300}),
        SimpleNamespace(size=32),
    ):
        with pytest.raises(ValueError, match="not known where"):
            patch_geometry(processor, (32, 32), _PATCH)
    with pytest.raises(ValueError, match="less than one patch of 40"):
        patch_geometry(clip, (64, 64), 40)
    with pytest.raises(ValueError, match="at least one pixel"):
        patch_geometry(clip, (0, 64), 8)
    geometry = patch_geometry(clip, (64, 64), _PATCH)
    with pytest.raises(ValueError, match=r"shape \(16,\) or \(4, 4\), .* got \(17,\)"):
        geometry.mask(np.zeros(17))
    with pytest.raises(ValueError, match="bicubic"):
        geometry.mask(np.zeros(16), "bicubic")  # type: ignore[arg-type]
