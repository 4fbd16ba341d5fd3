"""Images to measure on, with their classes: a fixed random selection, read again when needed, never all decoded."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import PIL.Image
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.image_loader import MAX_BAD_IMAGE_FRACTION, ImageLoader, PixelBatch, decode_image
from sae_lens_sparsemax.data.images import ImageDataset, class_labels_of, encoded_images, load_image_dataset
from sae_lens_sparsemax.data.loading import require_column
from sae_lens_sparsemax.data.order import Wanted, everything, permutation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImageReading:
    """How images and their classes are read from a data set."""

    image_column: str = "image"
    """Column with the images."""
    label_column: str = "label"
    """Column with the class of each image, as a whole number."""
    streaming: bool = False
    """Read only the first images, as they come, rather than download everything."""
    max_bad_image_fraction: float = MAX_BAD_IMAGE_FRACTION
    """Share of the images that may be broken, beyond the first ten."""


@dataclass(frozen=True)
class ImageData(ImageReading):
    """One set of images."""

    path: str
    """Hub id, local parquet file, or folder of images with one subfolder per class."""
    split: str = "train"
    """Split of the data set; local files form the split train."""
    config: str | None = None
    """Configuration of the data set, where it has several."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return f"{self.path} ({self.split})"


@dataclass(eq=False)
class LabelledImages:
    """Some rows of a data set in a fixed order, as pixels and labels that can be read any number of times."""

    data: Dataset
    """The images, encoded, and their labels if there are any."""
    image_processor: Any
    """The `transformers` image processor of the model."""
    batch_size: int
    """Images at a time."""
    _: KW_ONLY
    rows: Sequence[int] | None = None
    """The rows to read, in this order; None for all."""
    image_column: str = "image"
    """The column with the images."""
    label_column: str = "label"
    """The column with the class of each image, which need not be there."""
    name: str = "given"
    """What to call the data set in messages."""
    max_bad_fraction: float = MAX_BAD_IMAGE_FRACTION
    """Share of the images that may be broken, beyond the first ten."""
    _said: bool = field(default=False, init=False)

    @property
    def _rows(self) -> Sequence[int]:
        return range(len(self.data)) if self.rows is None else self.rows

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.n_images // self.batch_size)

    @property
    def n_images(self) -> int:
        """Number of images, broken ones included."""
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of pixel values, `(images, channels, height, width)`, and of labels, `(images,)`."""
        for batch in self.batches():
            yield batch.pixel_values, self.labels[batch.numbers]

    def pixels(self, description: str | None = None) -> Iterator[torch.Tensor]:
        """Batches of pixel values alone; with a progress bar if there is a description."""
        batches = tqdm(self.batches(), desc=description, total=len(self), disable=description is None, leave=False)
        for batch in batches:
            yield batch.pixel_values

    def batches(self, start: int = 0, wanted: Wanted = everything) -> Iterator[PixelBatch]:
        """Batches from image number `start` on that are `wanted` (see `ImageLoader.batches`).

        Broken images are left out, and named at the end of the first pass.

        Raises:
            ValueError: too many images are broken, or all.
        """
        loader = self._loader(self.image_processor)
        yield from loader.batches({"drawn": start}, one_pass=True, wanted=wanted)
        if loader.n_bad and not self._said:
            self._said = True
            logger.warning(
                "%d images of %s could not be used and were left out: %s",
                loader.n_bad,
                self.name,
                "; ".join(loader.first_errors),
            )

    def image(self, number: int) -> PIL.Image.Image:
        """One image, in RGB.

        Raises:
            ValueError: it is broken.
        """
        return decode_image(self.data[self._rows[number]][self.image_column])

    @cached_property
    def labels(self) -> torch.Tensor:
        """Class of every image, `(n_images,)` int64; -1 for images without a label: -1, null or NaN in the data.

        Raises:
            ValueError: there is no such column, or it holds something else than the numbers of classes.
        """
        require_column("label_column", self.label_column, self.data.column_names, self.name)
        labels = self.data.select(self._rows)[self.label_column]
        labels = [-1 if label is None or label != label else label for label in labels]  # NaN is not equal to itself
        n_classes = len(self.class_labels() or ())
        allowed = f"0 to {n_classes - 1}" if n_classes else "whole numbers from 0 on"
        for row, label in zip(self._rows, labels, strict=True):
            # pandas makes floats of whole numbers where some are missing.
            is_class = isinstance(label, int | float) and label % 1 == 0
            if not (is_class and (-1 <= label < n_classes if n_classes else label >= -1)):
                raise ValueError(
                    f"The column {self.label_column!r} of {self.name} must hold classes, {allowed}, or -1 or null for "
                    f"none, got {label!r:.60} in row {row}; `Dataset.class_encode_column` makes classes of words."
                )
        if n_unlabelled := labels.count(-1):
            logger.warning(
                "%d of %d images of %s have no label in %r; they are left out of classification",
                n_unlabelled,
                len(labels),
                self.name,
                self.label_column,
            )
        return torch.tensor(labels, dtype=torch.int64)

    def labelled(self) -> LabelledImages:
        """Only the images that have a label, which may be none.

        Raises:
            ValueError: see `labels`.
        """
        return self.select((self.labels >= 0).nonzero().flatten().tolist())

    def class_labels(self) -> list[str] | None:
        """See `class_labels_of`."""
        return class_labels_of(self.data, self.label_column)

    def complexities(self) -> torch.Tensor:
        """`compressed_size` of every usable image as the model sees it, resized and cropped; float64, `(images,)`."""

        def geometry_alone(images: list[PIL.Image.Image], **options: Any) -> Any:
            return self.image_processor(images, do_rescale=False, do_normalize=False, **options)  # or they are no bytes

        loader = self._loader(geometry_alone)
        sizes = [
            compressed_size(image.round().to(torch.uint8))
            for batch in loader.batches(one_pass=True)
            for image in batch.pixel_values
        ]
        return torch.tensor(sizes, dtype=torch.float64)

    def select(self, numbers: Sequence[int]) -> LabelledImages:
        """Only these images."""
        return replace(self, rows=[self._rows[number] for number in numbers])

    def seen_by(self, image_processor: Any) -> LabelledImages:
        """The same images prepared for another model."""
        return replace(self, image_processor=image_processor)

    def _loader(self, image_processor: Any) -> ImageLoader:
        return ImageLoader(
            self.data,
            image_processor,
            self.batch_size,
            image_column=self.image_column,
            seed=None,
            rows=self.rows,
            max_bad_fraction=self.max_bad_fraction,
        )


def random_images(
    data: ImageDataset, n_images: int, image_processor: Any, batch_size: int, **columns: Any
) -> LabelledImages:
    """Up to `n_images` images in the fixed random order: of all, or of the first ones of a stream.

    Args:
        data: from `load_image_dataset`, or through `encoded_images`.
        n_images: how many; fewer if there are not so many.
        image_processor: the model's.
        batch_size: images at a time.
        **columns: `image_column`, `label_column`, `name` and `max_bad_fraction` of `LabelledImages`.
    """
    label_column = columns.get("label_column", "label")
    labels = [label_column] if label_column in (data.column_names or []) else []
    rows = data.select_columns([columns.get("image_column", "image"), *labels])
    if not isinstance(rows, Dataset):  # held in memory, the images still encoded
        rows = Dataset.from_list(list(islice(rows, n_images)), features=rows.features)
    return LabelledImages(rows, image_processor, batch_size, rows=permutation(len(rows))[:n_images].tolist(), **columns)


def load_images(
    data: ImageData, n_images: int, image_processor: Any, batch_size: int, dataset: ImageDataset | None = None
) -> LabelledImages:
    """The `random_images` of a set of images; `dataset` stands for the one that `data` names.

    Raises:
        ValueError: the data set or the column with the images is missing.
    """
    if dataset is None:
        dataset = load_image_dataset(
            data.path, split=data.split, config=data.config, image_column=data.image_column, streaming=data.streaming
        )
    else:
        dataset = encoded_images(dataset, data.image_column, data.name)
    return random_images(
        dataset,
        n_images,
        image_processor,
        batch_size,
        image_column=data.image_column,
        label_column=data.label_column,
        name=data.name,
        max_bad_fraction=data.max_bad_image_fraction,
    )


def compressed_size(image: torch.Tensor) -> float:
    """Complexity of an image: bytes per pixel value after lossless compression of row differences.

    Differences of neighbouring rows are what PNG's "up" filter stores before its own zlib compression, so the
    measure behaves like the size of a PNG, without an image library.

    Args:
        image: pixels of shape (channels, height, width) or (height, width), uint8.

    Raises:
        ValueError: pixels of another type.
    """
    if image.dtype != torch.uint8:
        raise ValueError(f"image must have pixels of type torch.uint8, got {image.dtype}")
    rows = image.cpu().flatten(0, -2)
    differences = torch.cat([rows[:1], rows[1:] - rows[:-1]])  # wraps around, as in PNG
    return len(zlib.compress(differences.numpy().tobytes(), level=6)) / image.numel()
