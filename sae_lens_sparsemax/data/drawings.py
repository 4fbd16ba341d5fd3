"""Drawings of coloured shapes: images that the package makes itself, so that a first run on vision needs no data.

A drawing shows one of eight shapes in one of eight colours, of any size, place and angle, on a gray texture: 64
classes that are easy to name and not trivial to see. Every drawing is a function of its split and number, so no two
splits share one.
"""

import io
import math
from typing import Literal, get_args

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from PIL import ImageDraw

DrawingSplit = Literal["model", "train", "validation"]
"""What the embedded vision model learns from, what an SAE trains on, and what both are measured on."""

SIZE = 32
"""Width and height of a drawing in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (240, 130, 25),
    "yellow": (240, 220, 50),
    "green": (50, 165, 60),
    "cyan": (60, 205, 220),
    "blue": (45, 75, 210),
    "purple": (125, 45, 170),
    "pink": (245, 135, 195),
}

CAPTION = "a drawing of a {}"
"""The words around the name of a class that the embedded model was trained with."""

_SHARPNESS = 4  # shapes are drawn so many times larger, then averaged down
_N_IMAGES = {"train": 4096, "validation": 640}

Point = tuple[float, float]


def _around(n: int, radii: tuple[float, ...], start: float = -90) -> list[Point]:
    """`n` points at equal angles, their distances from the centre repeating `radii`."""
    angles = [math.radians(start + 360 * i / n) for i in range(n)]
    return [
        (radii[i % len(radii)] * math.cos(angle), radii[i % len(radii)] * math.sin(angle))
        for i, angle in enumerate(angles)
    ]


def _heart() -> list[Point]:
    angles = [2 * math.pi * i / 48 for i in range(48)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in angles
    ]


def _moon() -> list[Point]:
    outer = [(math.cos(t), math.sin(t)) for t in np.linspace(0.9, 2 * math.pi - 0.9, 40)]
    inner = [(0.55 + 0.79 * math.cos(t), 0.79 * math.sin(t)) for t in np.linspace(2 * math.pi - 1.5, 1.5, 40)]
    return outer + inner


_CROSS: list[Point] = [(-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33)]
_CIRCLE = _around(48, (1.0,))
SHAPES: dict[str, list[Point]] = {
    "circle": _CIRCLE,
    "square": _around(4, (1.15,), start=45),
    "triangle": _around(3, (1.15,)),
    "star": _around(10, (1.15, 0.45)),
    "cross": [*_CROSS, *[(-x, -y) for x, y in _CROSS]],
    # There and back again, so that the hole stays empty.
    "ring": [*_CIRCLE, _CIRCLE[0], *[(0.55 * x, 0.55 * y) for x, y in [_CIRCLE[0], *_CIRCLE[::-1]]]],
    "heart": _heart(),
    "moon": _moon(),
}
"""Outlines around (0, 0), about one unit in radius, y downwards."""

CLASSES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
"""The names of the 64 classes, in the order of their labels."""


def draw(label: int, generator: np.random.Generator) -> PILImage.Image:
    """One drawing of a class, `SIZE` pixels in RGB."""
    colour, shape = CLASSES[label].split()
    radius = generator.uniform(7, 12)
    centre = generator.uniform(radius, SIZE - radius, size=2)
    angle = math.radians(generator.uniform(-20, 20))

    def place(point: Point) -> Point:
        x = point[0] * math.cos(angle) - point[1] * math.sin(angle)
        y = point[0] * math.sin(angle) + point[1] * math.cos(angle)
        return _SHARPNESS * (centre[0] + radius * x), _SHARPNESS * (centre[1] + radius * y)

    mask = PILImage.new("L", (SIZE * _SHARPNESS, SIZE * _SHARPNESS))
    ImageDraw.Draw(mask).polygon([place(point) for point in SHAPES[shape]], fill=255)
    paint = np.clip(np.array(COLOURS[colour]) + generator.normal(0, 10, size=3), 0, 255).astype(int)
    image = _texture(generator)
    image.paste(tuple(paint.tolist()), mask=mask.reduce(_SHARPNESS))
    return image


def _texture(generator: np.random.Generator) -> PILImage.Image:
    """A gray ground: clouds, at times stripes across them, and grain."""
    clouds = PILImage.fromarray(generator.integers(70, 190, size=(4, 4), dtype=np.uint8))
    ground = np.asarray(clouds.resize((SIZE, SIZE), PILImage.Resampling.BICUBIC), dtype=np.float64)
    if generator.random() < 0.5:
        direction, wavelength = generator.uniform(0, math.pi), generator.uniform(4, 10)
        y, x = np.mgrid[:SIZE, :SIZE]
        phase = (x * math.cos(direction) + y * math.sin(direction)) * 2 * math.pi / wavelength
        ground = ground + generator.uniform(10, 30) * np.sin(phase)
    grain = generator.normal(0, 6, size=(SIZE, SIZE, 3)) + generator.normal(0, 8, size=3)
    return PILImage.fromarray(np.clip(ground[..., None] + grain, 0, 255).astype(np.uint8))


def drawing(split: DrawingSplit, number: int) -> tuple[PILImage.Image, int]:
    """Drawing `number` of a split and its label; classes follow each other in a fixed order."""
    generator = np.random.default_rng([get_args(DrawingSplit).index(split), number])
    label = number % len(CLASSES)
    return draw(label, generator), label


def quickstart_images(split: Literal["train", "validation"], n_images: int | None = None) -> Dataset:
    """The drawings for an SAE, 4,096 to train on and 640 held out, or the first `n_images` of them.

    Columns: `image`, encoded as PNG, and `label`, with the names of the classes.

    Raises:
        ValueError: `split` names neither.
    """
    if split not in _N_IMAGES:
        raise ValueError(f"split must be 'train' or 'validation', got {split!r}")
    images, labels = [], []
    for number in range(n_images or _N_IMAGES[split]):
        image, label = drawing(split, number)
        file = io.BytesIO()
        image.save(file, format="PNG", compress_level=1)
        images.append({"bytes": file.getvalue(), "path": None})
        labels.append(label)
    features = Features({"image": Image(), "label": ClassLabel(names=[name.replace(" ", "_") for name in CLASSES])})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)
