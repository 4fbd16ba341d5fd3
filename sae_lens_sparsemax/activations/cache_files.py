"""The files of an activation cache: shards that are whole or reported as damaged, and the manifest that lists them.

A shard is a safetensors file with the tensors `activations` `(n_tokens, d_in)` and `lengths` `(n_inputs,)`, the tokens
of each image or context in it. `manifest.json` says what they were made from and gives the size and SHA-256 of each,
and one of what it says itself. Both appear whole or not at all. In the first version of the format a shard held images
alone, all of one length, as `activations` `(n_images, n_tokens, d_in)`, and up to the second the manifest had no
SHA-256 of itself; they are read as well.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from sae_lens_sparsemax.activations.sources import ActivationBatch
from sae_lens_sparsemax.data.image_loader import Position
from sae_lens_sparsemax.files import atomic_write_bytes, atomic_write_text, sha256_of

MANIFEST_FILENAME = "manifest.json"
_VERSION = 3
_AGAIN = "'sparsemax-sae cache-activations' (or the same 'compare') with the same configuration makes it again"


@dataclass(frozen=True)
class Shard:
    """One file of activations."""

    file: str
    n_inputs: int
    """Images or contexts in it."""
    n_tokens: int
    """Their tokens: rows of the file."""
    n_bad_inputs: int
    """Inputs left out while it was made."""
    n_left_out: int
    """Tokens left out for their norm while it was made."""
    n_bytes: int
    sha256: str
    position: Position
    """Where the source continues after it."""


@dataclass
class Manifest:
    """What a cache holds and what it was made from."""

    made_from: dict[str, Any]
    """See `cache_identity` and `cache_order`."""
    dtype: str
    d_in: int
    unit: str
    """What the inputs are: images or contexts."""
    shards: list[Shard] = field(default_factory=list)
    first_errors: list[str] = field(default_factory=list)
    """One sentence for each of the first inputs that could not be used."""
    complete: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that made it, for the record."""
    format_version: int = _VERSION

    @property
    def n_inputs(self) -> int:
        """Images or contexts whose activations are there."""
        return sum(shard.n_inputs for shard in self.shards)

    @property
    def n_tokens(self) -> int:
        """Activations that are there."""
        return sum(shard.n_tokens for shard in self.shards)

    @property
    def n_bad_inputs(self) -> int:
        """Inputs that could not be used."""
        return sum(shard.n_bad_inputs for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.n_bytes for shard in self.shards)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Replace the manifest in one step."""
    values = {**asdict(manifest), "format_version": _VERSION}
    values["sha256"] = _checksum(values)
    atomic_write_text(folder / MANIFEST_FILENAME, json.dumps(values, indent=1) + "\n")


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
        if version == 1:
            values = _from_version_1(values)
        elif version == _VERSION and values.pop("sha256", None) != _checksum(values):
            raise ValueError("it has changed since it was written (its SHA-256 is another)")
        if version in range(1, _VERSION + 1):
            shards = [Shard(**shard) for shard in values["shards"]]
            for number, shard in enumerate(shards):
                if shard.file != _shard_name(number):
                    raise ValueError(f"shard {number} must be {_shard_name(number)!r}, got {shard.file!r}")
            return Manifest(**{**values, "shards": shards})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}. Cache the activations again.") from error
    raise ValueError(f"{str(path)!r} has the format {version}; this version reads 1 to {_VERSION}.")


def _checksum(values: dict[str, Any]) -> str:
    """SHA-256 of what a manifest says, however it is laid out."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _shard_name(number: int) -> str:
    return f"activations-{number:05d}.safetensors"


def write_shard(folder: Path, number: int, batches: Sequence[ActivationBatch]) -> Shard:
    """Write shard `number` of a cache, counted from 0, and return its entry in the manifest.

    Raises:
        ValueError: activations that are not finite.
    """
    acts = torch.cat([batch.acts for batch in batches])
    if not acts.isfinite().all():
        dtype = str(acts.dtype).removeprefix("torch.")
        raise ValueError(f"Some activations are not finite as {dtype}; store them as bfloat16 or float32.")
    lengths = torch.cat([batch.lengths for batch in batches])
    data = save({"activations": acts, "lengths": lengths})
    file = _shard_name(number)
    atomic_write_bytes(folder / file, data)
    return Shard(
        file,
        n_inputs=len(lengths),
        n_tokens=len(acts),
        n_bad_inputs=sum(batch.n_bad_inputs for batch in batches),
        n_left_out=sum(batch.n_left_out for batch in batches),
        n_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        position=batches[-1].position,
    )


def damage(folder: Path, shard: Shard) -> str | None:
    """What is wrong with a shard's file, in a few words; None for a file that is as it was written."""
    path = folder / shard.file
    if not path.is_file():
        return "is missing"
    n_bytes = path.stat().st_size
    if n_bytes != shard.n_bytes:
        return f"has {n_bytes:,} bytes where {shard.n_bytes:,} were written"
    if sha256_of(path) != shard.sha256:
        return "has changed since it was written (its SHA-256 is another)"
    return None


def read_shard(folder: Path, shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
    """The activations of a shard, `(n_tokens, d_in)`, mapped into memory, and the tokens of each input, `(n_inputs,)`.

    Raises:
        ValueError: the file is missing or not what was written (its checksum is verified first).
    """
    wrong = damage(folder, shard)
    if wrong is not None:
        raise ValueError(f"The shard {str(folder / shard.file)!r} {wrong}; {_AGAIN}.")
    with safe_open(folder / shard.file, framework="pt") as file:
        acts = file.get_tensor("activations")
        if acts.ndim == 3:  # of version 1
            return acts.flatten(0, 1), torch.full((len(acts),), acts.shape[1])
        return acts, file.get_tensor("lengths")


def _from_version_1(values: dict[str, Any]) -> dict[str, Any]:
    """A manifest of images alone as one of this version; its files stay as they are."""
    n_tokens = values["n_tokens_per_image"]
    shards = [
        {
            "file": shard["file"],
            "n_inputs": shard["n_images"],
            "n_tokens": shard["n_images"] * n_tokens,
            "n_bad_inputs": shard["n_bad_images"],
            "n_left_out": 0,
            **{name: shard[name] for name in ("n_bytes", "sha256", "position")},
        }
        for shard in values["shards"]
    ]
    kept = {key: value for key, value in values.items() if key != "n_tokens_per_image"}
    return kept | {"unit": "images", "shards": shards, "format_version": _VERSION}
