"""Labelled images to evaluate on, read again for every metric, and never all decoded at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.image_loader import decode_image
from sae_lens_sparsemax.data.images import first_rows, load_image_dataset
from sae_lens_sparsemax.evaluation.sparsity import compressed_size


@dataclass(frozen=True)
class ImageData:
    """One set of images."""

    path: str
    """Hub id, local parquet file, or folder of images with one subfolder per class."""
    split: str = "train"
    """Split of the data set; local files form the split train."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    image_column: str = "image"
    """Column with the images."""
    label_column: str = "label"
    """Column with the class of each image, as a whole number."""
    streaming: bool = False
    """Read only the first images, as they come, rather than download everything."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return f"{self.path} ({self.split})"


class LabelledImages:
    """
    Some rows of a set of images, as batches of pixels and labels that can be read any number of times.

    Args:
        rows: The images and their labels.
        data: Where they come from.
        image_processor: The `transformers` image processor of the model.
        batch_size: Images at a time.
    """

    def __init__(self, rows: Dataset, data: ImageData, image_processor: Any, batch_size: int) -> None:
        self.rows, self.data, self.image_processor, self.batch_size = rows, data, image_processor, batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.n_images // self.batch_size)

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of pixel values, (images, channels, height, width), and of labels, (images,)."""
        for images, labels in self._decoded():
            yield self.image_processor(images, return_tensors="pt")["pixel_values"], labels

    def pixels(self, description: str | None = None) -> Iterator[torch.Tensor]:
        """Batches of pixel values alone; with a progress bar if there is a description."""
        for pixels, _ in tqdm(self, desc=description, disable=description is None, leave=False):
            yield pixels

    @property
    def has_labels(self) -> bool:
        """Whether the data set has the label column."""
        return self.data.label_column in self.rows.column_names

    def labels(self) -> torch.Tensor:
        """Class of every image, shape (images,), int64."""
        return torch.tensor(self.rows[self.data.label_column], dtype=torch.int64)

    def class_labels(self) -> list[str] | None:
        """The data set's own names of its classes, as they are written there; None if it has none."""
        feature = (self.rows.features or {}).get(self.data.label_column)
        return list(feature.names) if isinstance(feature, ClassLabel) and feature.names else None

    def complexities(self) -> torch.Tensor:
        """`compressed_size` of every image as the model sees it, resized and cropped; float64, shape (images,)."""
        sizes = []
        for images, _ in self._decoded():
            # Only geometry: normalised pixels are no bytes.
            processed = self.image_processor(images, return_tensors="pt", do_rescale=False, do_normalize=False)
            sizes += [compressed_size(image.round().to(torch.uint8)) for image in processed["pixel_values"]]
        return torch.tensor(sizes, dtype=torch.float64)

    def select(self, rows: list[int]) -> LabelledImages:
        """Only these rows."""
        return LabelledImages(self.rows.select(rows), self.data, self.image_processor, self.batch_size)

    def seen_by(self, image_processor: Any) -> LabelledImages:
        """The same images prepared for another model."""
        return LabelledImages(self.rows, self.data, image_processor, self.batch_size)

    def _decoded(self) -> Iterator[tuple[list[Any], torch.Tensor]]:
        for start in range(0, self.n_images, self.batch_size):
            batch = self.rows[start : start + self.batch_size]
            images = []
            for offset, encoded in enumerate(batch[self.data.image_column]):
                try:
                    images.append(decode_image(encoded))
                except Exception as error:  # whatever a broken file makes its decoder raise
                    reason = " ".join(str(error).split())
                    raise ValueError(f"Image {start + offset} of {self.data.name} cannot be used: {reason}") from error
            labels = batch.get(self.data.label_column, [0] * len(images))
            yield images, torch.tensor(labels, dtype=torch.int64)


def load_images(data: ImageData, n_images: int, image_processor: Any, batch_size: int) -> LabelledImages:
    """
    Up to `n_images` images: in a fixed random order, or the first ones of a stream.

    Raises:
        ValueError: The data set or a column is missing, or the labels are no whole numbers.
    """
    dataset = load_image_dataset(
        data.path, split=data.split, config=data.config, image_column=data.image_column, streaming=data.streaming
    )
    columns = [data.image_column]
    if data.label_column in (dataset.column_names or []):
        columns.append(data.label_column)
    rows = first_rows(dataset, n_images, columns)
    if isinstance(dataset, Dataset):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        rows = rows.select(order[:n_images].tolist())
    if len(columns) == 2 and not isinstance(rows[0][data.label_column], int):
        found = type(rows[0][data.label_column]).__name__
        raise ValueError(f"The column {data.label_column!r} of {data.name} holds {found} values, not whole numbers.")
    return LabelledImages(rows, data, image_processor, batch_size)
