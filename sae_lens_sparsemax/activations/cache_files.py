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
from sae_lens_sparsemax.data.order import Position
from sae_lens_sparsemax.files import atomic_write_bytes, atomic_write_text, read_object, reading, sealed, sha256_of
from sae_lens_sparsemax.settings.checking import build
from sae_lens_sparsemax.settings.sentences import must_be, shown

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
    values = sealed({**asdict(manifest), "format_version": _VERSION})
    atomic_write_text(folder / MANIFEST_FILENAME, json.dumps(values, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST_FILENAME
    if not path.is_file():
        condition = f"a folder with {MANIFEST_FILENAME}, as 'sparsemax-sae cache-activations' writes it"
        raise must_be("cached_activations_path", condition, str(folder))
    values = read_object(path)
    with reading(path):
        version = values["format_version"]
        if version not in (*range(1, _VERSION), _VERSION):
            raise ValueError(f"its format is {shown(version)}, and this version reads 1 to {_VERSION}")
        manifest = build(Manifest, _from_version_1(values) if version == 1 else values)
        for number, shard in enumerate(manifest.shards):
            if shard.file != _shard_name(number):
                raise ValueError(f"shards.{number}.file must be {_shard_name(number)!r}, got {shown(shard.file)}")
            if min(shard.n_inputs, shard.n_tokens, shard.n_bytes) < 1:
                raise ValueError(f"shards.{number} must hold inputs, tokens and bytes")
        return manifest


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
        raise ValueError(
            f"The activations must be finite as {dtype}, got NaN or inf; store them as bfloat16 or float32."
        )
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
    with reading(folder / shard.file), safe_open(folder / shard.file, framework="pt") as file:
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
