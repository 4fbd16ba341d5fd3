"""From stored images to batches of pixels: the one way to read an image, and the one loop over images.

An image means the same pixels wherever it is used, see `as_rgb`. One that cannot be read is left out, counted and
named by its row; too many of them are an error. The order is a fixed function of the seed and the position, so a
saved position is enough to continue exactly.
But: a data set that is streamed is read in its own order, since the buffer that `datasets` shuffles a
stream with cannot be saved; there the shuffle buffer for activations does the mixing.
"""

import io
import logging
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Image, IterableDataset
from PIL import ImageOps

from sae_lens_sparsemax.data.decode_workers import decoded_ahead, to_parent, why_workers_failed
from sae_lens_sparsemax.data.images import ImageDataset
from sae_lens_sparsemax.data.order import Position, Wanted, everything, permutation

logger = logging.getLogger(__name__)

MAX_BAD_IMAGE_FRACTION = 0.01
"""Share of the images read that may be broken, beyond the first ten, unless a setting says otherwise."""

# Resizing the short side of a stripe to the model's size would take gigabytes.
_LARGEST_ASPECT_RATIO = 100
_N_NAMED = 10


def decode_image(encoded: Any, max_pixels: int | None = None) -> PIL.Image.Image:
    """The image that every model and page is shown of a stored one.

    Args:
        encoded: as `datasets` stores it (`{"bytes": ..., "path": ...}`).
        max_pixels: the largest image that is decoded; None takes all that Pillow takes.

    Returns:
        What `as_rgb` makes of it.

    Raises:
        ValueError: there is no image, it is broken, too large, or a stripe too narrow to resize.
    """
    if encoded is None:
        raise ValueError("there is no image")
    with _one_sentence():
        if max_pixels is not None:
            _check_size(encoded, max_pixels)
        return as_rgb(Image().decode_example(encoded))


def as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An opened image as a person sees it: in RGB, 8 bits, turned as its camera was held, its first frame, on white.

    Transparent pixels show white and not the colours that happen to be stored under them, which CLIP's own
    `convert("RGB")` brings out. Grays of 16 bits keep their upper 8, as Pillow reads colours of 16 bits. Where none of
    an image's values is above 255 they are 8-bit levels, however many bits hold them: arrays of whole numbers are often
    stored so, and of the upper bits nothing would be left but black. So a picture of 16 bits that is all but black is
    shown brighter than its neighbours, as Pillow shows it. Floating-point values up to 1 are shares of white, others
    8-bit levels.

    Raises:
        ValueError: it is broken, a stripe too narrow to resize, or has values of no known scale.
    """
    if max(image.size) > _LARGEST_ASPECT_RATIO * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels is too narrow to resize")
    with _one_sentence():
        if image.getexif().get(PIL.Image.ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            image = _in_8_bits(image)
        if image.has_transparency_data:
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
        return image if image.mode == "RGB" else image.convert("RGB")


def _in_8_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Gray of whole numbers wider than 8 bits or of floating-point values, which Pillow would clip at 255."""
    values = np.asarray(image)
    largest = 255 if image.mode == "F" else 65_535
    if not (values.min() >= 0 and values.max() <= largest):
        raise ValueError(f"gray values must lie in [0, {largest}], got {values.min()} to {values.max()}")
    if image.mode == "F":
        levels = np.round(values * (255 if values.max() <= 1 else 1))
    else:
        levels = values >> 8 if values.max() > 255 else values
    gray = PIL.Image.fromarray(levels.astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        gray.putalpha(PIL.Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Whatever a broken file makes its decoder raise, as a ValueError; without remarks on odd but readable files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ValueError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise ValueError("this is no image of a known kind") from error
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


class PixelBatch(NamedTuple):
    """Decoded images and where the order continues after them."""

    pixel_values: torch.Tensor
    """`(n_good, channel, height, width)` float32."""
    numbers: list[int]
    """Place of each image in the order, counted from 0 through all passes, broken ones included."""
    errors: list[str]
    """One sentence for each image that could not be used."""
    position: Position


class _Task(NamedTuple):
    """What a worker decodes at once."""

    numbers: list[int]
    names: list[str]
    """What to call each image in a message."""
    encoded: list[Any]
    position: Position
    """Where the order continues after them."""


class _Decoder:
    """Runs in the workers: one task to one `PixelBatch`."""

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor

    def __getitem__(self, task: _Task) -> PixelBatch:
        images, numbers, errors = [], [], []
        for number, name, encoded in zip(task.numbers, task.names, task.encoded, strict=True):
            try:
                images.append(decode_image(encoded))
                numbers.append(number)
            except ValueError as error:
                errors.append(f"{name}: {error}")
        pixels = self._preprocess(images) if images else torch.empty(0)
        return PixelBatch(to_parent(pixels), numbers, errors, task.position)

    def _preprocess(self, images: list[PIL.Image.Image]) -> torch.Tensor:
        # Resizing to the size an image has changes nothing, but transformers converts it there and back.
        edge = getattr(getattr(self.image_processor, "size", None), "shortest_edge", None)
        options = {"do_resize": False} if all(min(image.size) == edge for image in images) else {}
        return self.image_processor(images, return_tensors="pt", **options)["pixel_values"]


@dataclass(eq=False)
class ImageLoader:
    """Batches of preprocessed images, endless or in one pass, resumable at any batch.

    Raises:
        ValueError: while iterating, when more images are broken than `max_bad_fraction` allows.
    """

    data: ImageDataset
    """The images, encoded (see `load_image_dataset`)."""
    image_processor: Any
    """The model's `transformers` image processor."""
    batch_size: int
    """Images read for a batch; broken ones among them make it smaller."""
    _: KW_ONLY
    image_column: str = "image"
    """The column with the images."""
    n_workers: int = 0
    """Processes that decode ahead; 0 decodes in this one."""
    seed: int | None = 0
    """Of the order in each pass over the data. None keeps the order of the rows."""
    rows: Sequence[int] | None = None
    """The rows of `data` to read; None for all. Not for a stream."""
    max_bad_fraction: float = MAX_BAD_IMAGE_FRACTION
    """Share of the images read that may be broken, beyond the first ten."""
    share: tuple[int, int] = (0, 1)
    """Which of how many equal parts of the order to read: (1, 4) for every fourth image, from the second on; together
    they are the order. Not for a stream, nor for one pass."""
    n_good: int = field(default=0, init=False)
    n_bad: int = field(default=0, init=False)
    first_errors: list[str] = field(default_factory=list, init=False)
    """The first ten broken images, for the report."""

    def batches(
        self,
        position: Position | None = None,
        *,
        one_pass: bool = False,
        wanted: Wanted = everything,
    ) -> Iterator[PixelBatch]:
        """Batches from a position on (None for the start), without end or, for `one_pass`, to that of the data.

        Batches without a usable image are left out; the next one carries their errors. So are, undecoded, those that
        are not `wanted`, which is told how many images were drawn before.
        """
        here, n_workers = dict(position or {}), self.n_workers
        errors: list[str] = []
        while True:
            try:
                for batch in decoded_ahead(
                    _Decoder(self.image_processor), self._tasks(here, one_pass, wanted), n_workers
                ):
                    self._count(batch)
                    here = batch.position
                    errors += batch.errors
                    if len(batch.pixel_values):
                        yield batch._replace(errors=errors)
                        errors = []
                break
            except (RuntimeError, OSError, EOFError) as error:
                if not n_workers:
                    raise
                # What was not taken yet is decoded again, so nothing is lost or comes twice.
                n_workers = 0
                # Ends the workers now. The garbage collector would end their queues first, and then wait for them.
                traceback.clear_frames(error.__traceback__)
                logger.warning("Images are decoded in this process from here on: %s", why_workers_failed(error))
        if self.n_bad and not self.n_good and not (position or {}).get("drawn"):
            found = f"{self.n_bad} that cannot. The first: {self.first_errors[0]}"
            raise ValueError(f"The data must hold images that can be used, got {found}")

    def _count(self, batch: PixelBatch) -> None:
        self.n_good += len(batch.pixel_values)
        self.n_bad += len(batch.errors)
        self.first_errors = (self.first_errors + batch.errors)[:_N_NAMED]
        if self.n_bad > max(_N_NAMED, self.max_bad_fraction * (self.n_good + self.n_bad)):
            raise ValueError(
                f"{self.n_bad} of the first {self.n_good + self.n_bad} images could not be used, more than "
                f"max_bad_image_fraction, {self.max_bad_fraction}, allows. The first: {self.first_errors[0]}"
            )

    def _tasks(self, position: Position, one_pass: bool, wanted: Wanted) -> Iterable[_Task]:
        if isinstance(self.data, IterableDataset):
            return _stream_tasks(self.data, position, self.batch_size, self.image_column, one_pass, wanted)
        return self._table_tasks(self.data, position.get("drawn", 0), one_pass, wanted)

    def _table_tasks(self, data: Dataset, drawn: int, one_pass: bool, wanted: Wanted) -> Iterator[_Task]:
        """Tasks from data with random access; the position is the number of images drawn, those of one's own share."""
        first, step = self.share
        rows = range(len(data)) if self.rows is None else self.rows
        column = data.select_columns([self.image_column])
        epoch, order = -1, None
        while not one_pass or drawn < len(rows):
            numbers = range(drawn, min(drawn + self.batch_size, len(rows)) if one_pass else drawn + self.batch_size)
            drawn, chosen = numbers.stop, []
            if not wanted(numbers.start):
                continue
            for number in numbers:
                pass_number, place = divmod(first + step * number, len(rows))
                if pass_number != epoch:
                    epoch = pass_number
                    order = None if self.seed is None else permutation(len(rows), self.seed, epoch)
                chosen.append(rows[place if order is None else int(order[place])])
            encoded = column[chosen][self.image_column]
            yield _Task(list(numbers), [f"row {row}" for row in chosen], encoded, {"drawn": drawn})


def _stream_tasks(
    data: IterableDataset,
    position: Position,
    batch_size: int,
    image_column: str,
    one_pass: bool,
    wanted: Wanted,
) -> Iterator[_Task]:
    """Tasks from a stream, read again from its start when it ends; the position is its own state."""
    drawn, state = position.get("drawn", 0), position.get("stream")
    encoded: list[Any] = []

    def task() -> _Task:
        numbers = list(range(drawn - len(encoded), drawn))
        names = [f"image {number}" for number in numbers]
        return _Task(numbers, names, encoded, {"drawn": drawn, "stream": stream.state_dict()})

    while True:
        # A new object for each pass: one that was given a state begins every pass there.
        stream = data.select_columns([image_column])
        if state is not None:
            stream.load_state_dict(state)
            state = None
        for row in stream:
            encoded.append(row[image_column])
            drawn += 1
            if len(encoded) == batch_size:
                if wanted(drawn - batch_size):
                    yield task()
                encoded = []
        if one_pass:
            if encoded and wanted(drawn - len(encoded)):
                yield task()
            return


def _check_size(encoded: Any, max_pixels: int) -> None:
    """Refuse a file too large to decode by what its first bytes say."""
    with PIL.Image.open(io.BytesIO(encoded["bytes"])) as header:
        width, height = header.size
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} pixels is too large; at most {max_pixels // 1_000_000} million are taken")
