"""Keeping activations on disk: a killed run goes on after its last finished shard, and a damaged one is made again.

One process writes a cache, or several do, a shard each at a time: the shards and their order are the same, and however
many go on with it later.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
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
from sae_lens_sparsemax.data.order import Position, Wanted, everything, of_part
from sae_lens_sparsemax.files import only_writer
from sae_lens_sparsemax.settings.sentences import must_be

logger = logging.getLogger(__name__)

_N_NAMED = 10

SHARD_BYTES = 256 * 2**20
"""Size of a shard: large enough to read fast, small enough to hold twice in memory."""

Made = list[ActivationBatch]

Batches = Callable[[Position | None, Wanted], Iterator[ActivationBatch]]
"""One pass over some inputs, from a position on: those of the batches that are wanted."""


class CacheWriter:
    """Stores the first activations of a stream, whole batches of inputs, or what of them is not there yet.

    Every so many batches of the stream are a shard, so that several processes can each make shards of their own and
    the cache is the same as that of one.

    Args:
        folder: of the cache; made if missing. Of several processes the same one.
        made_from: what decides the activations and their order; a cache of anything else is refused.
        d_in: width of the activations.
        dtype: in which they are stored: float32, float16 or bfloat16.
        unit: what the inputs are: images or contexts.
        batch: inputs of a batch, and tokens of each unless some are left out.
        shard_bytes: size at which a shard is finished.
        part: which of how many processes that write the cache together this is.
        gather: gives what they all have beside one's own, in their order.
    """

    def __init__(
        self,
        folder: Path,
        made_from: dict[str, Any],
        d_in: int,
        dtype: str,
        unit: str,
        batch: tuple[int, int],
        shard_bytes: int,
        *,
        part: tuple[int, int] = (0, 1),
        gather: Callable[[Any], list[Any]] = lambda own: [own],
    ) -> None:
        self.folder, self.dtype, self.part, self.gather = folder, str_to_dtype(dtype), part, gather
        versions = {
            "sae_lens_sparsemax": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self.manifest = Manifest(made_from, dtype, d_in, unit, versions=versions)
        self._bytes_per_token = d_in * self.dtype.itemsize
        self._inputs_per_batch, self._tokens_per_batch = batch[0], batch[0] * batch[1]
        self._batches_per_shard = max(1, -(-shard_bytes // (self._bytes_per_token * self._tokens_per_batch)))

    def write(self, batches: Batches, n_tokens: int, description: str = "Caching activations") -> Manifest:
        """Store at least `n_tokens` activations, or all that the stream gives; all processes call it.

        Args:
            batches: the stream, which must be the same each time; only called if something is missing.
            n_tokens: activations wanted.
            description: label of the progress bar.

        Raises:
            ValueError: the folder cannot be written to, another process writes to it, or it holds a cache of something
                else; the disk is too small, the stream gives nothing, or activations are not finite as stored.
        """
        with ExitStack() as stack:
            if self.part[0] == 0:
                stack.enter_context(only_writer(self.folder, "cached_activations_path"))
                if (self.folder / MANIFEST_FILENAME).is_file():
                    earlier = read_manifest(self.folder)
                    require_same(earlier.made_from, self.manifest.made_from, self.folder)
                    self.manifest = earlier
            self.manifest = manifest = self.gather(self.manifest)[0]
            damaged = self._damaged()
            n_there = sum(shard.n_tokens for number, shard in enumerate(manifest.shards) if number not in damaged)
            self._check_disk_space(n_tokens, n_there)
            manifest.complete = False
            self._save()
            with tqdm(total=n_tokens, desc=description, unit="token", unit_scale=True) as bar:
                bar.update(n_there)
                self._make_again(damaged, batches, bar)
                while manifest.n_tokens < n_tokens and self._add_shards(batches, n_tokens, bar):
                    pass
            if not manifest.shards:
                raise ValueError(f"The data must hold {manifest.unit} that can be used, got none.")
            manifest.complete = True
            self._save()
            return manifest

    def _save(self) -> None:
        if self.part[0] == 0:
            write_manifest(self.manifest, self.folder)

    def _damaged(self) -> list[int]:
        """The numbers of the shards that are not what was written."""
        part, n_parts = self.part
        numbers = range(part, len(self.manifest.shards), n_parts)
        found = [number for number in numbers if damage(self.folder, self.manifest.shards[number]) is not None]
        return sorted(chain(*self.gather(found)))

    def _make_again(self, damaged: list[int], batches: Batches, bar: tqdm) -> None:
        """Make those shards, each process its part of them."""
        shards, (part, n_parts) = self.manifest.shards, self.part
        for first in range(0, len(damaged), n_parts):
            numbers, made = damaged[first : first + n_parts], []
            if part < len(numbers):
                before, wanted = numbers[part] - 1, shards[numbers[part]].position["drawn"]
                stream = batches(shards[before].position if before >= 0 else None, everything)
                made = self._until(wanted, stream, [], bar)
                if not any(len(batch.acts) for batch in made):
                    file = shards[numbers[part]].file
                    raise ValueError(f"The data must hold the {self.manifest.unit} of {file}, got none of them.")
            self._enter(numbers, made, part, bar)

    def _add_shards(self, batches: Batches, n_tokens: int, bar: tqdm) -> bool:
        """Make further shards, one for each process at a time, until there are enough; False if there is no more."""
        manifest, (part, n_parts) = self.manifest, self.part
        position = manifest.shards[-1].position if manifest.shards else None
        start = first = position["drawn"] if position is not None else 0
        n_inputs = self._batches_per_shard * self._inputs_per_batch
        stream = batches(position, of_part(self.part, start, n_inputs))
        ahead: list[ActivationBatch] = []
        while (n_missing := n_tokens - manifest.n_tokens) > 0:
            own = first + part * n_inputs
            n_batches = -(-n_missing // self._tokens_per_batch) - part * self._batches_per_shard
            end = own + min(max(n_batches, 0), self._batches_per_shard) * self._inputs_per_batch
            made = self._until(end, stream, ahead, bar) if end > own else []
            is_over = end > own and not ahead and (not made or made[-1].position["drawn"] < end)
            found = self.gather((any(len(batch.acts) for batch in made), is_over))
            n_there = len(manifest.shards)
            numbers = range(n_there, n_there + sum(is_any for is_any, _ in found))
            self._enter(numbers, made, sum(is_any for is_any, _ in found[:part]), bar)
            if any(over for _, over in found):
                return False
            if not numbers:
                what = f"{manifest.unit} that can be used among any {n_inputs * n_parts:,}"
                raise ValueError(f"The data must hold {what}, got none after the first {first:,}")
            first += n_parts * n_inputs
            if manifest.shards[-1].position["drawn"] != first:
                break  # tokens were left out: others in their place come from after the last shard
        return True

    def _until(self, end: int, stream: Iterator[ActivationBatch], ahead: list[ActivationBatch], bar: tqdm) -> Made:
        """The batches up to input number `end`; one that is beyond it is put into `ahead`, for the next call."""
        made: Made = []
        while not made or made[-1].position["drawn"] < end:
            batch = ahead.pop() if ahead else next(stream, None)
            if batch is None:
                break
            if batch.position["drawn"] > end:
                ahead.append(batch)
                break
            made.append(batch._replace(acts=batch.acts.to("cpu", self.dtype)))
            bar.update(len(batch.acts))
        return made

    def _enter(self, numbers: Sequence[int], made: Made, place: int, bar: tqdm) -> None:
        """Write what was made, if anything, as the shard at `place` of `numbers`; enter those of all processes."""
        manifest, entry = self.manifest, None
        if any(len(batch.acts) for batch in made):
            entry = write_shard(self.folder, numbers[place], made)
        found = self.gather((entry, [error for batch in made for error in batch.errors]))
        shards = [shard for shard, _ in found if shard is not None]
        for number, shard in zip(numbers, shards, strict=True):
            if not (self.folder / shard.file).is_file():
                raise must_be("cached_activations_path", "a folder that all processes share", str(self.folder))
            manifest.shards[number : number + 1] = [shard]
        manifest.first_errors = [*manifest.first_errors, *chain(*(errors for _, errors in found))][:_N_NAMED]
        bar.update(sum(shard.n_tokens for shard in shards if shard is not entry))
        self._save()

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
