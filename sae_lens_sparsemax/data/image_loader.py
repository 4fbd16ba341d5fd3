"""From a data set to batches of pixels: an endless, reproducible order, decoding in workers, bad images
counted.

The order is a fixed function of the seed and the position, so a saved position is enough to continue exactly.
But: a data set that is streamed is read in its own order, since the buffer that `datasets` shuffles a
stream with cannot be saved; there the shuffle buffer for activations does the mixing.
"""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from datasets import Dataset, Image, IterableDataset
from torch.utils.data import DataLoader

from sae_lens_sparsemax.data.images import ImageDataset

Position = dict[str, Any]
"""A place in the endless order of images, as JSON values."""

# Resizing the short side of a stripe to the model's size would take gigabytes.
_LARGEST_ASPECT_RATIO = 100


class PixelBatch(NamedTuple):
    """Decoded images and where the order continues after them."""

    pixel_values: torch.Tensor
    """`(n_good, channel, height, width)` float32."""
    errors: list[str]
    """One sentence for each image that could not be used."""
    position: Position


class _Decoder:
    """Runs in the workers: one task (encoded images and the position after them) to one `PixelBatch`."""

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor

    def __getitem__(self, task: tuple[list[tuple[str, Any]], Position]) -> PixelBatch:
        images, errors = [], []
        for where, encoded in task[0]:
            try:
                images.append(decode_image(encoded))
            except Exception as error:  # whatever a broken file makes its decoder raise
                errors.append(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}")
        pixels = self._preprocess(images) if images else torch.empty(0)
        return PixelBatch(pixels, errors, task[1])

    def _preprocess(self, images: list[Any]) -> torch.Tensor:
        # Resizing to the size an image has changes nothing, but transformers converts it there and back.
        edge = getattr(getattr(self.image_processor, "size", None), "shortest_edge", None)
        options = {"do_resize": False} if all(min(image.size) == edge for image in images) else {}
        return self.image_processor(images, return_tensors="pt", **options)["pixel_values"]


def decode_image(encoded: Any) -> Any:
    """A PIL image in RGB from an encoded one, as `datasets` stores it (`{"bytes": ..., "path": ...}`).

    Gray, palette, transparent and 16-bit images are converted.

    Raises:
        ValueError: there is no image, or it is a stripe too narrow to resize.
        Exception: whatever the decoder raises on a broken file.
    """
    if encoded is None:
        raise ValueError("there is no image.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a decoder's remarks on odd but readable files
        image = Image().decode_example(encoded).convert("RGB")
    if max(image.size) > _LARGEST_ASPECT_RATIO * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels is too narrow to resize.")
    return image


class ImageLoader:
    """Endless batches of preprocessed images, resumable at any batch.

    Args:
        data: the images, encoded (see `load_image_dataset`).
        image_processor: the model's `transformers` image processor.
        batch_size: images read for a batch; broken ones among them make it smaller.
        image_column: the column with the images.
        n_workers: processes that decode ahead; 0 decodes in this one.
        seed: of the order in each pass over the data. None keeps the data's own order.
        max_bad_fraction: share of the images read that may be broken, beyond the first ten.

    Raises:
        ValueError: while iterating, when more images are broken than that.
    """

    def __init__(
        self,
        data: ImageDataset,
        image_processor: Any,
        batch_size: int,
        *,
        image_column: str = "image",
        n_workers: int = 0,
        seed: int | None = 0,
        max_bad_fraction: float = 0.01,
    ):
        self.data, self.image_processor, self.image_column = data, image_processor, image_column
        self.batch_size, self.n_workers, self.seed = batch_size, n_workers, seed
        self.max_bad_fraction = max_bad_fraction
        self.n_good, self.n_bad = 0, 0
        self.first_errors: list[str] = []
        """The first ten broken images, for the report."""

    def batches(self, position: Position | None = None, *, one_pass: bool = False) -> Iterator[PixelBatch]:
        """Batches from a position on (None for the start), without end or, for `one_pass`, to that of the data.

        Batches without a usable image are left out; the next one carries their errors.
        """
        tasks = self._tasks(dict(position or {}), one_pass)
        loader = DataLoader(
            _Decoder(self.image_processor),  # type: ignore[arg-type]
            sampler=tasks,
            batch_size=None,
            num_workers=self.n_workers,
            # Enough for a model that is faster now and then; more only takes memory.
            prefetch_factor=2 if self.n_workers else None,
            # Without one of its own, the loader would draw its seed from the generator that shuffles tokens.
            generator=torch.Generator(),
        )
        errors: list[str] = []
        for batch in loader:
            self._count(batch)
            errors += batch.errors
            if len(batch.pixel_values):
                yield batch._replace(errors=errors)
                errors = []

    def _count(self, batch: PixelBatch) -> None:
        self.n_good += len(batch.pixel_values)
        self.n_bad += len(batch.errors)
        self.first_errors = (self.first_errors + batch.errors)[:10]
        if self.n_bad > max(10, self.max_bad_fraction * (self.n_good + self.n_bad)):
            raise ValueError(
                f"{self.n_bad} of the first {self.n_good + self.n_bad} images could not be used, more than "
                f"max_bad_image_fraction, {self.max_bad_fraction}, allows. The first: {self.first_errors[0]}"
            )

    def _tasks(self, position: Position, one_pass: bool) -> Iterable[tuple[list[tuple[str, Any]], Position]]:
        if isinstance(self.data, IterableDataset):
            return _stream_tasks(self.data, position, self.batch_size, self.image_column, one_pass)
        return _table_tasks(self.data, position, self.batch_size, self.image_column, self.seed, one_pass)


def _table_tasks(
    data: Dataset, position: Position, batch_size: int, image_column: str, seed: int | None, one_pass: bool
) -> Iterator[tuple[list[tuple[str, Any]], Position]]:
    """Tasks from data with random access; the position is the number of images drawn."""
    drawn, n_rows, epoch, order = position.get("drawn", 0), len(data), -1, None
    column = data.select_columns([image_column])
    while not one_pass or drawn < n_rows:
        rows = []
        end = min(drawn + batch_size, n_rows) if one_pass else drawn + batch_size
        for index in range(drawn, end):
            if index // n_rows != epoch:
                epoch = index // n_rows
                order = None if seed is None else _permutation(n_rows, seed, epoch)
            rows.append(index % n_rows if order is None else int(order[index % n_rows]))
        drawn = end
        encoded = column[rows][image_column]
        yield [(f"row {row}", image) for row, image in zip(rows, encoded, strict=True)], {"drawn": drawn}


def _stream_tasks(
    data: IterableDataset, position: Position, batch_size: int, image_column: str, one_pass: bool
) -> Iterator[tuple[list[tuple[str, Any]], Position]]:
    """Tasks from a stream, read again from its start when it ends; the position is its own state."""
    drawn, task, state = position.get("drawn", 0), [], position.get("stream")
    while True:
        # A new object for each pass: one that was given a state begins every pass there.
        stream = data.select_columns([image_column])
        if state is not None:
            stream.load_state_dict(state)
            state = None
        for row in stream:
            task.append((f"image {drawn}", row[image_column]))
            drawn += 1
            if len(task) == batch_size:
                yield task, {"drawn": drawn, "stream": stream.state_dict()}
                task = []
        if one_pass:
            if task:
                yield task, {"drawn": drawn, "stream": stream.state_dict()}
            return


def _permutation(n_rows: int, seed: int, epoch: int) -> torch.Tensor:
    # Seeds of successive epochs, and of runs with neighbouring seeds, must not meet.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(n_rows, generator=generator)
