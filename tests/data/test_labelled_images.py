"""What every entry point sees of the same images: the same pixels, the same order, and none that cannot be read."""

import base64
import contextlib
import io
import logging

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset

from sae_lens_sparsemax.data.image_loader import ImageLoader, as_rgb, decode_image
from sae_lens_sparsemax.data.images import encoded_images
from sae_lens_sparsemax.data.labelled_images import random_images
from sae_lens_sparsemax.data.order import permutation
from sae_lens_sparsemax.explore.app.session import _image
from sae_lens_sparsemax.explore.concepts import concepts_of_image
from tests.support.tiny_images import gray_levels, plain_processor


def with_broken(n: int, broken: set[int]) -> Dataset:
    data = encoded_images(gray_levels(n), "image")
    rows = [row | {"image": {"bytes": b"broken", "path": None}} if i in broken else row for i, row in enumerate(data)]
    return Dataset.from_list(rows, features=data.features)


def brightness(pixels: torch.Tensor) -> list[int]:
    return (pixels[:, 0, 0, 0] * 255).round().int().tolist()


def test_broken_images_are_left_out_of_every_pass_and_named_by_their_rows(caplog):
    images = random_images(with_broken(20, {3, 4}), 100, plain_processor(), 6)
    with caplog.at_level(logging.WARNING):
        passes = [list(images), list(images)]
    order = [row for row in permutation(20).tolist() if row not in (3, 4)]
    for batches in passes:
        assert [row for pixels, _ in batches for row in brightness(pixels)] == order
        assert torch.cat([labels for _, labels in batches]).tolist() == [row % 2 for row in order]
    (said,) = caplog.messages
    assert "2 images of given" in said and "row 3: this is no image" in said and "row 4: this is no image" in said


def test_the_order_is_that_of_a_first_pass_with_seed_0_and_can_be_taken_up_anywhere():
    data = with_broken(20, {3})
    images = random_images(data, 12, plain_processor(), 5)
    drawn = [row for batch in images.batches() for row in brightness(batch.pixel_values)]
    first = next(ImageLoader(data, plain_processor(), 12, seed=0).batches())
    assert drawn == brightness(first.pixel_values)
    for start in (5, 10):
        rest = list(images.batches(start))
        assert [row for batch in rest for row in brightness(batch.pixel_values)] == [
            images.rows[number] for number in range(start, 12) if images.rows[number] != 3
        ]
        assert [images.rows[number] for batch in rest for number in batch.numbers if images.rows[number] == 3] == []


def test_a_selection_and_another_model_see_the_same_rows():
    images = random_images(with_broken(20, set()), 10, plain_processor(), 4)
    chosen = images.select([7, 2])
    assert [row for pixels in chosen.pixels() for row in brightness(pixels)] == [images.rows[7], images.rows[2]]
    assert chosen.labels.tolist() == images.labels[[7, 2]].tolist()
    assert [p.shape[-1] for p in images.seen_by(plain_processor(8)).pixels()] == [8, 8, 8]


def test_too_many_broken_images_or_none_at_all_are_an_error():
    with pytest.raises(ValueError, match=r"max_bad_image_fraction, 0\.01, allows.*row \d+: "):
        list(random_images(with_broken(100, set(range(50))), 100, plain_processor(), 10))
    with pytest.raises(ValueError, match=r"images that can be used, got 3 that cannot.*row \d: "):
        list(random_images(with_broken(3, {0, 1, 2}), 3, plain_processor(), 2).pixels())


def test_labels_that_are_missing_or_no_numbers_are_named():
    data = with_broken(4, set())
    with pytest.raises(ValueError, match=r"label_column must be one of 'image'.* got 'class'"):
        _ = random_images(data, 4, plain_processor(), 2, label_column="class").labels
    for kind, label in (("string", "odd"), ("string", "1"), ("float64", 0.5), ("float64", float("inf")), ("int64", -2)):
        with pytest.raises(ValueError, match=rf"'label' of given must hold classes, .* got {label!r} in row \d"):
            _ = random_images(
                with_labels([0, label] if kind == "int64" else [label] * 2, kind), 2, plain_processor(), 2
            ).labels
    beyond = with_labels([0, 2, 1], "int64")
    beyond.info.features["label"] = datasets.ClassLabel(names=["even", "odd"])  # as parquet files are read
    with pytest.raises(ValueError, match="must hold classes, 0 to 1, or -1 or null for none, got 2 in row 1"):
        _ = random_images(beyond, 3, plain_processor(), 2).labels


def with_labels(labels: list, kind: str) -> Dataset:
    images = encoded_images(gray_levels(len(labels)), "image")[:]["image"]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value(kind)})
    labels = [label if kind != "string" else str(label) for label in labels]
    return Dataset.from_list([{"image": i, "label": n} for i, n in zip(images, labels, strict=True)], features)


@pytest.mark.parametrize(
    ("kind", "missing"), [("int64", -1), ("int64", None), ("float64", None), ("float64", float("nan"))]
)
def test_images_without_a_label_are_counted_and_left_out(kind, missing, caplog):
    images = random_images(with_labels([0, missing, 2, missing, 1], kind), 5, plain_processor(), 2)
    expected = [[0, -1, 2, -1, 1][row] for row in images.rows]
    with caplog.at_level(logging.WARNING):
        labelled = images.labelled()
        assert images.labels.tolist() == expected
    assert labelled.rows == [row for row in images.rows if row not in (1, 3)]
    assert labelled.labels.tolist() == [label for label in expected if label >= 0]
    (said,) = caplog.messages
    assert said.startswith("2 of 5 images of given have no label in 'label'")
    assert random_images(with_labels([missing] * 2, kind), 2, plain_processor(), 2).labelled().n_images == 0


def test_a_turned_gray_jpeg_gives_the_same_pixels_everywhere(clip_and_sae):
    model, sae = clip_and_sae
    file = io.BytesIO()
    shaded = PIL.Image.fromarray(np.tile(np.arange(0, 192, 2, dtype=np.uint8), (64, 1)))
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6
    shaded.save(file, format="JPEG", exif=exif)
    stored = {"bytes": file.getvalue(), "path": None}
    expected = decode_image(stored)
    assert expected.size == (64, 96) and expected.mode == "RGB"
    opened = PIL.Image.open(file)
    assert _image(base64.b64encode(stored["bytes"]).decode()) == expected
    assert concepts_of_image(model, sae, opened).image == expected
    data = Dataset.from_list([{"image": stored}], features=datasets.Features({"image": datasets.Image(decode=False)}))
    pixels = model.preprocess(opened)
    assert torch.equal(next(ImageLoader(data, model.image_processor, 1).batches()).pixel_values, pixels)
    assert torch.equal(next(random_images(data, 1, model.image_processor, 1).pixels()), pixels)


def in_file(image: PIL.Image.Image, kind: str, **options) -> dict:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return {"bytes": file.getvalue(), "path": None}


GRAY = np.tile(np.arange(0, 256, dtype=np.uint8), (64, 1))
WIDE = GRAY.astype(np.uint16) * 257
"""The same levels in 16 bits."""
LEVELS = PIL.Image.fromarray(GRAY)
OTHER_FRAME = PIL.Image.new("L", LEVELS.size, 7)

SAME_LEVELS = {
    "L": in_file(LEVELS, "PNG"),
    "LA": in_file(LEVELS.convert("LA"), "PNG"),
    "P": in_file(LEVELS.convert("P"), "PNG"),
    "PA": in_file(LEVELS.convert("P").convert("PA"), "TIFF"),
    "RGBA": in_file(LEVELS.convert("RGBA"), "PNG"),
    "CMYK": in_file(LEVELS.convert("CMYK"), "TIFF"),
    "YCbCr": in_file(LEVELS.convert("YCbCr"), "TIFF"),
    "I;16 png": in_file(PIL.Image.fromarray(WIDE), "PNG"),
    "I;16 tiff": in_file(PIL.Image.fromarray(WIDE), "TIFF"),
    "I;16B": in_file(PIL.Image.fromarray(WIDE).convert("I").convert("I;16B"), "TIFF"),
    "I": in_file(PIL.Image.fromarray(WIDE.astype(np.int32)), "TIFF"),
    "I pgm": in_file(PIL.Image.fromarray(WIDE.astype(np.int32)), "PPM"),
    "F shares": in_file(PIL.Image.fromarray((GRAY / 255).astype(np.float32)), "TIFF"),
    "F levels": in_file(PIL.Image.fromarray(GRAY.astype(np.float32)), "TIFF"),
    "gif": in_file(LEVELS, "GIF", save_all=True, append_images=[OTHER_FRAME]),
    "apng": in_file(LEVELS, "PNG", save_all=True, append_images=[OTHER_FRAME]),
    "pages": in_file(LEVELS, "TIFF", save_all=True, append_images=[OTHER_FRAME]),
    "webp": in_file(LEVELS.convert("RGB"), "WEBP", lossless=True, save_all=True, append_images=[OTHER_FRAME]),
}


@pytest.mark.parametrize("name", SAME_LEVELS)
def test_the_same_levels_are_the_same_pixels_in_every_mode_depth_and_number_of_frames(name):
    stored = SAME_LEVELS[name]
    for image in (decode_image(stored), as_rgb(PIL.Image.open(io.BytesIO(stored["bytes"])))):
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.repeat(GRAY[..., None], 3, axis=-1))


def see_through() -> dict[str, PIL.Image.Image]:
    alpha = PIL.Image.fromarray(np.where(GRAY == 100, 0, 255).astype(np.uint8))
    gray, colour = LEVELS.convert("LA"), LEVELS.convert("RGBA")
    gray.putalpha(alpha), colour.putalpha(alpha)
    return {"LA": gray, "RGBA": colour}


@pytest.mark.parametrize(
    "stored",
    [
        *(in_file(image, "PNG") for image in see_through().values()),
        in_file(see_through()["RGBA"], "WEBP", lossless=True, exact=True),
        in_file(LEVELS, "PNG", transparency=100),
        in_file(LEVELS.convert("RGB"), "PNG", transparency=(100, 100, 100)),
        in_file(LEVELS.convert("P"), "PNG", transparency=100),
        in_file(LEVELS.convert("P"), "PNG", transparency=bytes([255] * 100 + [0])),
        in_file(LEVELS.convert("P"), "GIF", transparency=100),
        in_file(PIL.Image.fromarray(WIDE), "PNG", transparency=100 * 257),
    ],
)
def test_what_is_transparent_is_white_and_not_the_colour_stored_under_it(stored):
    expected = np.where(GRAY == 100, 255, GRAY)
    assert np.array_equal(np.asarray(decode_image(stored)), np.repeat(expected[..., None], 3, axis=-1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_image_is_turned_as_its_camera_was_held(kind, orientation):
    corner = PIL.Image.new("L", (48, 32))
    corner.paste(255, (0, 0, 16, 16))
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = orientation
    stored = in_file(corner.convert("RGB"), kind, exif=exif)
    for image in (decode_image(stored), as_rgb(PIL.Image.open(io.BytesIO(stored["bytes"])))):
        assert image.size == ((48, 32) if orientation < 5 else (32, 48))
        last_row, last_column = image.height - 8, image.width - 8
        places = {2: (last_column, 8), 3: (last_column, last_row), 4: (8, last_row), 5: (8, 8)}
        places |= {6: (last_column, 8), 7: (last_column, last_row), 8: (8, last_row)}
        seen = np.asarray(image.convert("L"))
        assert seen[places[orientation][::-1]] > 200 and (seen > 128).mean() == pytest.approx(1 / 6, abs=0.02)


def test_values_of_no_known_scale_are_refused():
    for values in (
        np.full((9, 9), np.nan, np.float32),
        np.full((9, 9), 300, np.float32),
        np.full((9, 9), -4, np.int32),
    ):
        with pytest.raises(ValueError, match=r"gray values must lie in \[0, (255|65535)\], got"):
            decode_image(in_file(PIL.Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "AVIF", "JPEG2000", "ICO", "PPM", "TGA", "PCX", "DDS", "QOI"]
)
def test_a_damaged_file_of_any_kind_is_a_value_error(kind):
    try:
        whole = in_file(LEVELS.convert("RGB").resize((32, 32)), kind)["bytes"]
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    random, n_refused = np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(whole[: random.integers(len(whole))] if random.random() < 0.3 else whole)
        for place in (random.random(4) ** 2 * len(damaged)).astype(int) if damaged else ():
            damaged[place] = random.integers(256)
        try:
            assert decode_image({"bytes": bytes(damaged), "path": None}).mode == "RGB"
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
            n_refused += 1
    assert n_refused
    opened = PIL.Image.open(io.BytesIO(whole))
    opened.fp.truncate(len(whole) // 2)
    with contextlib.suppress(ValueError):
        as_rgb(opened)
