"""The samples that pages show as files: small JPEGs of images, and the texts of contexts."""

import io
import logging
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sae_lens_sparsemax.explore.pages.scripts import rounded, write_script
from sae_lens_sparsemax.explore.samples import TopExamples
from sae_lens_sparsemax.explore.streams import ImageStream, TextStream
from sae_lens_sparsemax.models.patch_geometry import patch_geometry

logger = logging.getLogger(__name__)
SIDES = (224, 160, 112)
"""Short sides in pixels that are tried, best first."""
_QUALITY = 85
_TRIED = 24
CONTEXT_SHARD = 64
"""Numbers of contexts in a file, of which only those that are shown are in it."""
BYTES_PER_TOKEN = 9
"""What a token takes in such a file, on ordinary English."""
_TOKENS_IN_LABEL = 4


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


def write_contexts(
    folder: Path, stream: TextStream, samples: torch.Tensor, *, progress: bool
) -> dict[int, torch.Tensor]:
    """Write data/contexts-N.js with the texts of the tokens of every sample, and return the token ids."""
    tokens = dict(stream.contexts(samples, progress=progress))
    shards: dict[int, dict[int, list[str]]] = {}
    for number, ids in tokens.items():
        shards.setdefault(number // CONTEXT_SHARD, {})[number] = stream.at_hook.token_texts(ids.tolist())
    for shard, contexts in shards.items():
        write_script(folder, f"contexts-{shard}", contexts)
    return tokens


def peak_tokens(examples: TopExamples, contexts: dict[int, torch.Tensor]) -> torch.Tensor:
    """Token id at the peak of each example, shape (d_sae, k); -1 where there is none, or its context is not known."""
    place = examples.peak_places()
    peaks = torch.full_like(examples.sample, -1)
    numbers = torch.tensor(sorted(contexts), dtype=torch.int64)
    if not len(numbers):
        return peaks
    table = torch.stack([contexts[number] for number in numbers.tolist()])
    row = torch.searchsorted(numbers, examples.sample.clamp(min=0)).clamp(max=len(numbers) - 1)
    known = (numbers[row] == examples.sample) & (examples.sample >= 0)
    peaks[known] = table[row[known], place[known]]
    return peaks


def token_labels(peaks: torch.Tensor, stream: TextStream) -> list[str]:
    """The tokens on which the examples of each concept peak most often, as its label."""
    labels = []
    for row in peaks.tolist():
        found = list(dict.fromkeys(sorted((t for t in row if t >= 0), key=lambda t: -row.count(t))))[:_TOKENS_IN_LABEL]
        texts = (stream.at_hook.token_text(token).strip(" ").replace("\n", "↵") or "␣" for token in found)
        labels.append(" · ".join(dict.fromkeys(texts)))
    return labels
