"""Keeping activations on disk: a killed run goes on after its last finished shard, and a damaged one is made again."""

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from sae_lens.util import str_to_dtype
from tqdm.auto import tqdm

from sae_lens_sparsemax import __version__
from sae_lens_sparsemax.activations.cache_files import (
    MANIFEST_FILENAME,
    Manifest,
    damage,
    read_manifest,
    write_manifest,
    write_shard,
)
from sae_lens_sparsemax.activations.cache_identity import require_same
from sae_lens_sparsemax.activations.sources import ActivationBatch
from sae_lens_sparsemax.data.image_loader import Position
from sae_lens_sparsemax.files import only_writer

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20
"""Size at which a shard is finished: large enough to read fast, small enough to hold twice in memory."""

Batches = Callable[[Position | None], Iterator[ActivationBatch]]
"""One pass over some inputs, from a position on."""


class CacheWriter:
    """Stores the first activations of a stream, whole batches of inputs, or what of them is not there yet.

    Args:
        folder: of the cache; made if missing.
        made_from: what decides the activations and their order; a cache of anything else is refused.
        d_in: width of the activations.
        dtype: in which they are stored: float32, float16 or bfloat16.
        unit: what the inputs are: images or contexts.
        shard_bytes: size at which a shard is finished.
    """

    def __init__(
        self,
        folder: Path,
        made_from: dict[str, Any],
        d_in: int,
        dtype: str,
        unit: str,
        shard_bytes: int,
    ) -> None:
        self.folder, self.dtype = folder, str_to_dtype(dtype)
        versions = {
            "sae_lens_sparsemax": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self.manifest = Manifest(made_from, dtype, d_in, unit, versions=versions)
        self._bytes_per_token = d_in * self.dtype.itemsize
        self._tokens_per_shard = max(1, shard_bytes // self._bytes_per_token)

    def write(self, batches: Batches, n_tokens: int, description: str = "Caching activations") -> Manifest:
        """Store at least `n_tokens` activations, or all that the stream gives.

        Args:
            batches: the stream, which must be the same each time; only called if something is missing.
            n_tokens: activations wanted.
            description: label of the progress bar.

        Raises:
            ValueError: the folder cannot be written to, another process writes to it, or it holds a cache of something
                else; the disk is too small, the stream gives nothing, or activations are not finite as stored.
        """
        with only_writer(self.folder, "cached_activations_path"):
            if (self.folder / MANIFEST_FILENAME).is_file():
                earlier = read_manifest(self.folder)
                require_same(earlier.made_from, self.manifest.made_from, self.folder)
                self.manifest = earlier
            return self._write(batches, n_tokens, description)

    def _write(self, batches: Batches, n_tokens: int, description: str) -> Manifest:
        manifest, shards = self.manifest, self.manifest.shards
        intact = [damage(self.folder, shard) is None for shard in shards]
        n_there = sum(shard.n_tokens for shard, ok in zip(shards, intact, strict=True) if ok)
        self._check_disk_space(n_tokens, n_there)
        manifest.complete = False
        write_manifest(manifest, self.folder)
        position: Position | None = None
        stream: Iterator[ActivationBatch] | None = None
        number = n_done = 0
        with tqdm(total=n_tokens, desc=description, unit="token", unit_scale=True) as bar:
            while n_done < n_tokens:
                if number >= len(shards) or not intact[number]:
                    stream = stream or batches(position)
                    left = min(self._tokens_per_shard, n_tokens - n_done)
                    wanted = shards[number].n_tokens if number < len(shards) else left
                    if not self._make_shard(number, stream, wanted, bar):
                        break
                else:
                    stream = None  # the next shard to make is not where the last one ended
                    bar.update(shards[number].n_tokens)
                position = shards[number].position
                n_done += shards[number].n_tokens
                number += 1
        if not shards:
            raise ValueError(f"The data must hold {manifest.unit} that can be used, got none.")
        manifest.complete = True
        write_manifest(manifest, self.folder)
        return manifest

    def _make_shard(self, number: int, stream: Iterator[ActivationBatch], n_wanted: int, bar: tqdm) -> bool:
        """Fill one shard from the stream and enter it in the manifest; False if there is no more."""
        made: list[ActivationBatch] = []
        # Whole batches alone, so that every shard begins where a batch did, whenever the run was killed.
        while sum(len(batch.acts) for batch in made) < n_wanted:
            batch = next(stream, None)
            if batch is None:
                break
            made.append(batch._replace(acts=batch.acts.to("cpu", self.dtype)))
            bar.update(len(batch.acts))
            self.manifest.first_errors = (self.manifest.first_errors + list(batch.errors))[:10]
        if not made:
            return False
        self.manifest.shards[number : number + 1] = [write_shard(self.folder, number, made)]
        write_manifest(self.manifest, self.folder)
        return True

    def _check_disk_space(self, n_tokens: int, n_there: int) -> None:
        folder = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(folder).free
        needed = max(0, n_tokens - n_there) * self._bytes_per_token
        size = (
            f"{n_tokens:,} activations, {self.manifest.d_in} wide in {self.manifest.dtype}, {n_there:,} of them there "
            f"already, need {needed / 1e9:.3g} GB more in {str(self.folder)!r}, where {free / 1e9:.3g} GB are free"
        )
        if needed > free:
            raise ValueError(f"The activations do not fit: {size}. Store fewer, or in float16.")
        logger.info("%s.", size)
