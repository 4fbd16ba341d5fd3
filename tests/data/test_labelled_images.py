"""What every entry point sees of the same images: the same pixels, the same order, and none that cannot be read."""

import base64
import io
import logging

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset

from sae_lens_sparsemax.data.image_loader import ImageLoader, decode_image, permutation
from sae_lens_sparsemax.data.images import encoded_images
from sae_lens_sparsemax.data.labelled_images import random_images
from sae_lens_sparsemax.explore.app.session import _image
from sae_lens_sparsemax.explore.concepts.image import concepts_of_image
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
    with pytest.raises(ValueError, match=r"None of the 3 images could be used.*row \d: "):
        list(random_images(with_broken(3, {0, 1, 2}), 3, plain_processor(), 2).pixels())


def test_labels_that_are_missing_or_no_numbers_are_named():
    data = with_broken(4, set())
    with pytest.raises(ValueError, match=r"no column 'class'; its columns are 'image'"):
        _ = random_images(data, 4, plain_processor(), 2, label_column="class").labels
    words = data.cast_column("label", datasets.Value("int64")).map(lambda row: {"label": None})
    with pytest.raises(ValueError, match="'label' of given holds NoneType values, not whole numbers"):
        _ = random_images(words, 4, plain_processor(), 2).labels


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
