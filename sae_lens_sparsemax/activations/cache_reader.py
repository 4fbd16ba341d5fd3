"""Cached activations: an endless and reproducible stream to train on, or a table of rows.

The first pass of the stream is in the order in which the inputs were drawn when the cache was made, so a run on the
cache begins as the run on the model would. Each later pass goes through the shards in a new order, and through the
inputs in each: an order that reads the disk in large pieces. The mixing buffer shuffles single tokens afterwards, as
it does without a cache.
"""

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sae_lens_sparsemax.activations.cache_files import MANIFEST_FILENAME, Manifest, Shard, read_manifest, read_shard
from sae_lens_sparsemax.activations.cache_identity import require_same
from sae_lens_sparsemax.activations.sources import ActivationBatch
from sae_lens_sparsemax.data.order import Position, generator_of_pass

logger = logging.getLogger(__name__)

_ROWS_AT_A_TIME = 4096
# So many shards a process differ by a tenth at most between processes.
_SHARDS_FOR_EVEN_PARTS = 10


class CachedActivations:
    """An `ActivationSource` that runs no model. Every shard's checksum is verified each time it is read.

    Args:
        folder: where the cache is.
        batch_size: inputs in a batch; the last of a shard may be smaller.
        seed: of the order of all passes but the first.
        dtype: of the activations given out, whatever they are stored in.
        device: where they are given out.
        expected: what they must have been made from (see `cache_identity`); None takes what is there.
        share: which of how many parts to read, the same in each pass: whole shards where that is even enough, so that
            each is read by one process alone, else every so many-th input of each.

    Raises:
        ValueError: there is no whole cache, it was made from something else, or the share is empty. While iterating: a
            damaged shard, or a position that belongs to another source.
    """

    def __init__(
        self,
        folder: Path | str,
        batch_size: int,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        expected: dict[str, Any] | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        self.folder, self.batch_size, self.seed = Path(folder), batch_size, seed
        self.dtype, self.device = dtype, device
        self.manifest = _whole(self.folder, expected)
        self.first_errors = self.manifest.first_errors
        self._shares = _shares(self.manifest, *share)
        self._n_inputs = sum(len(inputs) for _, inputs in self._shares)
        if not self._n_inputs:
            raise ValueError(
                f"The cache in {str(self.folder)!r} must hold {self.manifest.unit} for each of the {share[1]} ranks, "
                f"got {self.manifest.n_inputs:,}"
            )
        logger.info(
            "Reading activations of %d %s from %s; %d were left out when they were cached.",
            self.manifest.n_inputs,
            self.manifest.unit,
            self.folder / MANIFEST_FILENAME,
            self.manifest.n_bad_inputs,
        )

    def batches(self, position: Position | None = None) -> Iterator[ActivationBatch]:
        """Batches from a position on; None for the start."""
        drawn = self._inputs_drawn(position)
        while True:
            number, skip = divmod(drawn, self._n_inputs)
            for shard, order in self._pass(number):
                if skip < len(order):
                    acts, lengths = read_shard(self.folder, shard)
                    starts = lengths.cumsum(0) - lengths
                    for start in range(skip, len(order), self.batch_size):
                        inputs = order[start : start + self.batch_size]
                        drawn += len(inputs)
                        ends_shard = start + len(inputs) == len(order)
                        yield ActivationBatch(
                            acts[_tokens_of(starts[inputs], lengths[inputs])].to(self.device, self.dtype),
                            lengths[inputs],
                            {"cache": self._identifier, "drawn": drawn},
                            shard.n_bad_inputs if ends_shard else 0,
                        )
                skip = max(0, skip - len(order))

    def _pass(self, number: int) -> Iterator[tuple[Shard, torch.Tensor]]:
        """The shards in the order of a pass, each with the order of its inputs."""
        if number == 0:
            yield from self._shares
            return
        generator = generator_of_pass(self.seed, number)
        for index in torch.randperm(len(self._shares), generator=generator).tolist():
            shard, inputs = self._shares[index]
            yield shard, inputs[torch.randperm(len(inputs), generator=generator)]

    @property
    def _identifier(self) -> str:
        """Differs between caches whose shards differ."""
        return self.manifest.shards[0].sha256[:16] + f"-{self.manifest.n_inputs}"

    def _inputs_drawn(self, position: Position | None) -> int:
        if position is None:
            return 0
        if position.get("cache") != self._identifier:
            raise ValueError(
                f"The checkpoint does not continue with the cache in {str(self.folder)!r}: it was made "
                f"{'with another cache' if 'cache' in position else 'without a cache'}."
            )
        return position["drawn"]


class ActivationTable:
    """The first activations of a cache as one `(n_rows, d_in)` table, mapped into memory.

    Every shard's checksum is verified when the table is opened; a run then touches only the rows of its batches.

    Args:
        folder: where the cache is.
        n_rows: activations to use.
        expected: what they must have been made from; None takes what is there.

    Raises:
        ValueError: there is no whole cache, it was made from something else, a shard is damaged, or it holds fewer.
    """

    def __init__(self, folder: Path | str, n_rows: int, expected: dict[str, Any] | None = None) -> None:
        folder = Path(folder)
        self.manifest = _whole(folder, expected)
        if n_rows > self.manifest.n_tokens:
            raise ValueError(
                f"The cache in {str(folder)!r} must hold {n_rows:,} activations, got {self.manifest.n_tokens:,}: "
                "the data gave no more."
            )
        self._shards: list[torch.Tensor] = []
        n_left = n_rows
        for shard in self.manifest.shards:
            if n_left > 0:
                self._shards.append(read_shard(folder, shard)[0][:n_left])
                n_left -= len(self._shards[-1])
        self._offsets = torch.tensor([0, *map(len, self._shards)]).cumsum(0)
        self.d_in = self.manifest.d_in

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """The rows with these numbers, `(len(index), d_in)`, float32, in the order of `index`."""
        out = torch.empty(len(index), self.d_in)
        shard_of_row = torch.searchsorted(self._offsets, index, right=True) - 1
        for number in shard_of_row.unique().tolist():
            here = shard_of_row == number
            out[here] = self._shards[number][index[here] - self._offsets[number]].float()
        return out

    def in_order(self, batch_size: int) -> Iterator[torch.Tensor]:
        """All rows once, in the order they were stored, float32."""
        for shard in self._shards:
            for batch in shard.split(batch_size):
                yield batch.float()

    @cached_property
    def mean(self) -> torch.Tensor:
        """Mean of all rows, `(d_in,)`, summed in float64 and given as float32."""
        total = torch.zeros(self.d_in, dtype=torch.float64)
        for batch in self.in_order(_ROWS_AT_A_TIME):
            total += batch.double().sum(0)
        return (total / len(self)).float()

    def shuffled(self, batch_size: int, seed: int, n_rows: int | None = None) -> Iterator[torch.Tensor]:
        """Batches without end: every epoch is a permutation of its rows that depends on `seed` and epoch alone.

        An epoch is all rows, or the next `n_rows` of them, so that what it gives is the same in a longer table. The
        rows left over at its end that do not fill a batch are dropped.
        """
        n_rows = len(self) if n_rows is None else n_rows
        if batch_size > n_rows:
            raise ValueError(f"batch_size must be at most the {n_rows} activations stored, got {batch_size}")
        generator = torch.Generator().manual_seed(seed)
        start = 0
        while True:
            epoch = start + torch.randperm(min(n_rows, len(self) - start), generator=generator)
            for index in epoch.split(batch_size):
                if len(index) == batch_size:
                    yield self.rows(index)
            start = (start + len(epoch)) % len(self)


def _whole(folder: Path, expected: dict[str, Any] | None) -> Manifest:
    """The manifest of a cache that is finished and was made from what is expected."""
    manifest = read_manifest(folder)
    require_same(manifest.made_from, expected or {}, folder)
    if not manifest.complete:
        raise ValueError(
            f"The cache in {str(folder)!r} must be finished, got the first {manifest.n_inputs:,} {manifest.unit}. "
            "Run 'sparsemax-sae cache-activations' again; finished shards are kept."
        )
    return manifest


def _shares(manifest: Manifest, part: int, n_parts: int) -> list[tuple[Shard, torch.Tensor]]:
    """The shards that one of several processes reads, each with the numbers of its inputs there."""
    shards = manifest.shards
    if len(shards) % n_parts == 0 or len(shards) >= _SHARDS_FOR_EVEN_PARTS * n_parts:
        return [(shard, torch.arange(shard.n_inputs)) for shard in shards[part::n_parts]]
    return [(shard, torch.arange(part, shard.n_inputs, n_parts)) for shard in shards if part < shard.n_inputs]


def _tokens_of(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The rows of inputs that begin at `starts` and have `lengths` tokens, one input after the other."""
    before = lengths.cumsum(0) - lengths
    return (starts - before).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
