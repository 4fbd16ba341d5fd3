"""Image samples as files: small JPEGs of the whole image, and where the patch grid lies on each."""

import io
import logging
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sae_lens_sparsemax.explore.images import ImageStream
from sae_lens_sparsemax.explore.pages.scripts import rounded, write_script
from sae_lens_sparsemax.models.patch_geometry import patch_geometry

logger = logging.getLogger(__name__)
SIDES = (224, 160, 112)
"""Short sides in pixels that are tried, best first."""
_QUALITY = 85
_TRIED = 24


def bytes_per_image(stream: ImageStream, side: int, samples: torch.Tensor) -> int:
    """What a picture takes on average, over a few of the samples."""
    some = samples[torch.linspace(0, len(samples) - 1, min(_TRIED, len(samples))).long()]
    sizes = [len(_jpeg(stream.image(int(number)), side)) for number in some]
    return sum(sizes) // len(sizes) + 60  # and its line in samples.js


def write_pictures(folder: Path, stream: ImageStream, samples: torch.Tensor, side: int, *, progress: bool) -> None:
    """Write images/ID.jpg for every sample, and data/samples.js: width, height, box of the patches, class."""
    (folder / "images").mkdir()
    lines = {}
    for number in tqdm(samples.tolist(), desc="Pictures", disable=not progress, leave=False):
        image = stream.image(number)
        (folder / "images" / f"{number}.jpg").write_bytes(_jpeg(image, side))
        box = patch_geometry(stream.model.image_processor, image.size, stream.model.cfg.patch_size).box
        lines[number] = [*image.size, *(rounded(edge) for edge in box), stream.label(number)]
    write_script(folder, "samples", lines)


def _jpeg(image: Any, side: int) -> bytes:
    """An image with a short side of at most `side` pixels; never made larger."""
    scale = min(1.0, side / min(image.size))
    if scale < 1:
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    file = io.BytesIO()
    # Small images show their blocks when they are drawn large.
    image.save(file, "JPEG", quality=_QUALITY if min(image.size) > 64 else 95)
    return file.getvalue()
