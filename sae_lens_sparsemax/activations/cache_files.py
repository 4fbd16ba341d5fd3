"""The files of an activation cache: shards that are whole or reported as damaged, and the manifest that lists them.

A shard is a safetensors file with one tensor, `activations` `(n_images, n_tokens, d_in)`. `manifest.json` says what
they were made from and gives the size and SHA-256 of each. Both appear whole or not at all.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from sae_lens_sparsemax.data.image_loader import Position
from sae_lens_sparsemax.files import atomic_write_bytes, atomic_write_text

MANIFEST_FILENAME = "manifest.json"
_TENSOR = "activations"
_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One file of activations."""

    file: str
    n_images: int
    n_bad_images: int
    """Images left out while it was made."""
    n_bytes: int
    sha256: str
    position: Position
    """Where the images continue after it."""


@dataclass
class Manifest:
    """What a cache holds and what it was made from."""

    made_from: dict[str, Any]
    """See `cache_identity` and `cache_order`."""
    dtype: str
    n_tokens_per_image: int
    d_in: int
    shards: list[Shard] = field(default_factory=list)
    first_errors: list[str] = field(default_factory=list)
    """One sentence for each of the first images that could not be used."""
    complete: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that made it, for the record."""
    format_version: int = _VERSION

    @property
    def n_images(self) -> int:
        """Images whose activations are there."""
        return sum(shard.n_images for shard in self.shards)

    @property
    def n_bad_images(self) -> int:
        """Images that could not be used."""
        return sum(shard.n_bad_images for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.n_bytes for shard in self.shards)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Replace the manifest in one step."""
    atomic_write_text(folder / MANIFEST_FILENAME, json.dumps(asdict(manifest), indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST_FILENAME
    if not path.is_file():
        raise ValueError(
            f"There are no cached activations in {str(folder)!r} (no {MANIFEST_FILENAME}); "
            "make them with 'sparsemax-sae cache-activations'."
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["format_version"]
        if version == _VERSION:
            return Manifest(**{**values, "shards": [Shard(**shard) for shard in values["shards"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}. Cache the activations again.") from error
    raise ValueError(f"{str(path)!r} has the format {version}; this version reads {_VERSION}.")


def write_shard(folder: Path, number: int, acts: torch.Tensor, n_bad_images: int, position: Position) -> Shard:
    """Write activations `(n_images, n_tokens, d_in)` as shard `number` and return its entry in the manifest."""
    name = f"activations-{number:05d}.safetensors"
    data = save({_TENSOR: acts.contiguous()})
    atomic_write_bytes(folder / name, data)
    return Shard(name, len(acts), n_bad_images, len(data), hashlib.sha256(data).hexdigest(), position)


def damage(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's file, in a few words; None for a file that is as it was written."""
    path = folder / shard.file
    if not path.is_file():
        return "is missing"
    n_bytes = path.stat().st_size
    if n_bytes != shard.n_bytes:
        return f"has {n_bytes:,} bytes where {shard.n_bytes:,} were written"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != shard.sha256:
        return "has changed since it was written (its SHA-256 is another)"
    return None


def read_shard(folder: Path, shard: Shard) -> torch.Tensor:
    """The activations of a shard, `(n_images, n_tokens, d_in)`, after its checksum was found right.

    Raises:
        ValueError: the file is missing or not what was written.
    """
    wrong = damage(folder, shard)
    if wrong is not None:
        raise ValueError(
            f"The shard {str(folder / shard.file)!r} {wrong}; 'sparsemax-sae cache-activations' with the same "
            "configuration makes it again."
        )
    return load_file(folder / shard.file)[_TENSOR]
