"""Running a vision model once over its images and keeping the activations on disk.

The counterpart of SAELens's `CacheActivationsRunner`, which knows language models alone. A killed run goes on after
its last finished shard, and a shard found damaged is made again.
"""

import copy
import logging
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
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
from sae_lens_sparsemax.activations.cache_identity import cache_identity, cache_order, require_same
from sae_lens_sparsemax.activations.vision_store import ModelActivations
from sae_lens_sparsemax.data.image_loader import PixelBatch, Position
from sae_lens_sparsemax.data.images import ImageDataset
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.tokens import hook_width, n_tokens_per_image
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig
from sae_lens_sparsemax.training.vision_sources import image_loader, model_of

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 * 2**20
"""Size at which a shard is finished: large enough to read fast, small enough to hold twice in memory."""


class VisionCacheActivationsRunner:
    """Stores the activations that a training run of the same configuration would read; `run()` returns the manifest.

    Each image is stored once: as many as `training_tokens` and the shuffle buffer need, or all there are. The same
    call goes on with what is there, also when more are asked for.

    Args:
        cfg: a training configuration with `cached_activations_path`; left as it is.
        override_model, override_dataset: used in place of what `cfg` names.
        shard_bytes: size at which a shard is finished.

    Raises:
        ValueError: no path, model, hook or images do not fit, the disk is too small, or the folder holds a cache of
            something else.
    """

    def __init__(
        self,
        cfg: VisionSAERunnerConfig[Any],
        override_model: HookedViT | None = None,
        override_dataset: ImageDataset | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        cfg = copy.deepcopy(cfg)
        if cfg.cached_activations_path is None:
            raise ValueError("'cached_activations_path' must name the folder to store activations in.")
        self.folder, self.dtype = Path(cfg.cached_activations_path), str_to_dtype(cfg.cached_activations_dtype)
        model = override_model or model_of(cfg)
        self.images = image_loader(cfg, model, override_dataset)
        self.source = ModelActivations(
            model,
            self.images,
            cfg.hook_name,
            cfg.tokens,
            dtype=self.dtype,
            device="cpu",
            autocast=cfg.autocast_model,
        )
        made_from = cache_identity(cfg, model) | cache_order(cfg, self.images.data) | {"shard_bytes": shard_bytes}
        self.manifest = Manifest(
            made_from,
            cfg.cached_activations_dtype,
            n_tokens_per_image(cfg.tokens, model),
            hook_width(self.source.hook_name, model),
            versions={
                "sae_lens_sparsemax": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        )
        if (self.folder / MANIFEST_FILENAME).is_file():
            earlier = read_manifest(self.folder)
            require_same(earlier.made_from, made_from, self.folder)
            self.manifest = earlier
        self.images_per_shard = max(1, shard_bytes // self._bytes_per_image)
        tokens = cfg.training_tokens + cfg.n_batches_in_buffer * cfg.train_batch_size_tokens
        # The buffer is filled by whole batches of images, so it may hold one more.
        n_images = math.ceil(tokens / self.manifest.n_tokens_per_image) + cfg.store_batch_size_images
        data = self.images.data
        self.n_images = min(n_images, len(data)) if isinstance(data, Dataset) else n_images

    def run(self) -> Manifest:
        """Store what is not there yet."""
        manifest, shards = self.manifest, self.manifest.shards
        intact = [damage(self.folder, shard) is None for shard in shards]
        self._check_disk_space(sum(shard.n_images for shard, ok in zip(shards, intact, strict=True) if ok))
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest.complete = False
        write_manifest(manifest, self.folder)
        position: Position | None = None
        pixels: Iterator[PixelBatch] | None = None
        number = n_done = 0
        with tqdm(total=self.n_images, desc="Caching activations", unit="image") as bar:
            while n_done < self.n_images:
                if number >= len(shards) or not intact[number]:
                    pixels = pixels or self.images.batches(position, one_pass=True)
                    left = min(self.images_per_shard, self.n_images - n_done)
                    wanted = shards[number].n_images if number < len(shards) else left
                    if not self._make_shard(number, pixels, wanted, bar):
                        break
                else:
                    pixels = None  # the next shard to make is not where the last one ended
                    bar.update(shards[number].n_images)
                position = shards[number].position
                n_done += shards[number].n_images
                number += 1
        if not shards:
            raise ValueError("None of the images could be used.")
        manifest.complete = True
        write_manifest(manifest, self.folder)
        return manifest

    def _make_shard(self, number: int, pixels: Iterator[PixelBatch], n_wanted: int, bar: tqdm) -> bool:
        """Fill one shard from the stream of images and enter it in the manifest; False if there are no more."""
        acts: list[torch.Tensor] = []
        n_bad, position = 0, {}
        # Whole batches alone, so that every shard begins where a batch did, whenever the run was killed.
        while sum(map(len, acts)) < n_wanted:
            batch = next(pixels, None)
            if batch is None:
                break
            acts.append(self.source.activations_of(batch.pixel_values))
            bar.update(len(batch.pixel_values))
            n_bad += len(batch.errors)
            position = batch.position
            self.manifest.first_errors = (self.manifest.first_errors + batch.errors)[:10]
        if not acts:
            return False
        stored = torch.cat(acts)
        if not stored.isfinite().all():
            raise ValueError(
                f"Some activations are not finite as {self.manifest.dtype}; "
                "set 'cached_activations_dtype' to bfloat16 or float32."
            )
        shard = write_shard(self.folder, number, stored, n_bad, position)
        self.manifest.shards[number : number + 1] = [shard]
        write_manifest(self.manifest, self.folder)
        return True

    @property
    def _bytes_per_image(self) -> int:
        return self.manifest.n_tokens_per_image * self.manifest.d_in * self.dtype.itemsize

    def _check_disk_space(self, n_there: int) -> None:
        folder = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(folder).free
        needed = max(0, self.n_images - n_there) * self._bytes_per_image
        size = (
            f"{self.n_images:,} images of {self.manifest.n_tokens_per_image} tokens, {self.manifest.d_in} wide in "
            f"{self.manifest.dtype}, {n_there:,} of them there already, need {needed / 1e9:.3g} GB more in "
            f"{str(self.folder)!r}, where {free / 1e9:.3g} GB are free"
        )
        if needed > free:
            raise ValueError(f"The activations do not fit: {size}. Store fewer, or in float16.")
        logger.info("%s.", size)
