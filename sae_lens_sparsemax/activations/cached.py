"""Activations read from a cache on disk, in an endless and reproducible order.

The first pass is in the order in which the images were drawn when the cache was made, so a run on the cache begins
as the run on the model would. Each later pass goes through the shards in a new order, and through the images in
each: an order that reads the disk in large pieces. SAELens's mixing buffer shuffles single tokens afterwards, as it
does without a cache.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sae_lens_sparsemax.activations.cache_files import MANIFEST_FILENAME, Shard, read_manifest, read_shard
from sae_lens_sparsemax.activations.cache_identity import require_same
from sae_lens_sparsemax.activations.vision_store import ActivationBatch
from sae_lens_sparsemax.data.image_loader import Position

logger = logging.getLogger(__name__)


class CachedActivations:
    """An `ActivationSource` that runs no model. Every shard's checksum is verified each time it is read.

    Args:
        folder: where the cache is.
        batch_size: images in a batch; the last of a shard may be smaller.
        seed: of the order of all passes but the first.
        dtype: of the activations given out, whatever they are stored in.
        device: where they are given out.
        expected: what they must have been made from (see `cache_identity`); None takes what is there.

    Raises:
        ValueError: there is no whole cache, or it was made from something else. While iterating: a damaged shard,
            or a position that belongs to another source.
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
    ):
        self.folder, self.batch_size, self.seed = Path(folder), batch_size, seed
        self.dtype, self.device = dtype, device
        self.manifest = read_manifest(self.folder)
        require_same(self.manifest.made_from, expected or {}, self.folder)
        if not self.manifest.complete:
            raise ValueError(
                f"The cache in {folder!s} is not finished: {self.manifest.n_images:,} images are there. "
                "Run 'sparsemax-sae cache-activations' again; finished shards are kept."
            )
        self.first_errors = self.manifest.first_errors
        logger.info(
            "Reading activations of %d images from %s; %d images were left out when they were cached.",
            self.manifest.n_images,
            self.folder / MANIFEST_FILENAME,
            self.manifest.n_bad_images,
        )

    def batches(self, position: Position | None = None) -> Iterator[ActivationBatch]:
        """Batches from a position on; None for the start."""
        drawn = self._images_drawn(position)
        while True:
            number, skip = divmod(drawn, self.manifest.n_images)
            for shard, order in self._pass(number):
                if skip < len(order):
                    acts = read_shard(self.folder, shard)
                    for start in range(skip, len(order), self.batch_size):
                        rows = order[start : start + self.batch_size]
                        drawn += len(rows)
                        ends_shard = start + len(rows) == len(order)
                        yield ActivationBatch(
                            acts[rows].flatten(0, 1).to(self.device, self.dtype),
                            {"cache": self._identifier, "drawn": drawn},
                            len(rows),
                            shard.n_bad_images if ends_shard else 0,
                        )
                skip = max(0, skip - len(order))

    def _pass(self, number: int) -> Iterator[tuple[Shard, torch.Tensor]]:
        """The shards in the order of a pass, each with the order of its images."""
        shards = self.manifest.shards
        if number == 0:
            yield from ((shard, torch.arange(shard.n_images)) for shard in shards)
            return
        # Seeds of successive passes, and of runs with neighbouring seeds, must not meet.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        for index in torch.randperm(len(shards), generator=generator).tolist():
            yield shards[index], torch.randperm(shards[index].n_images, generator=generator)

    @property
    def _identifier(self) -> str:
        """Differs between caches whose shards differ."""
        return self.manifest.shards[0].sha256[:16] + f"-{self.manifest.n_images}"

    def _images_drawn(self, position: Position | None) -> int:
        if position is None:
            return 0
        if position.get("cache") != self._identifier:
            raise ValueError(
                f"The checkpoint does not continue with the cache in {str(self.folder)!r}: it was made "
                f"{'with another cache' if 'cache' in position else 'without a cache'}."
            )
        return position["drawn"]
