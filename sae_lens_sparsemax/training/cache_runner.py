"""Running a model once over its images or text and keeping the activations on disk, to train from them.

The counterpart of SAELens's `CacheActivationsRunner`, for vision models too, with checks, and resumable.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from sae_lens.util import str_to_dtype

from sae_lens_sparsemax.activations.cache_files import Manifest
from sae_lens_sparsemax.activations.cache_identity import cache_order
from sae_lens_sparsemax.activations.cache_writer import SHARD_BYTES, Batches, CacheWriter
from sae_lens_sparsemax.activations.sources import ActivationBatch, ImageActivations, TextActivations
from sae_lens_sparsemax.activations.store import ResumableActivationsStore
from sae_lens_sparsemax.data.order import Position, Wanted
from sae_lens_sparsemax.data.texts import require_one_context
from sae_lens_sparsemax.files import require_writable
from sae_lens_sparsemax.models.language_models import (
    check_hook_width,
    hook_width,
    require_positions,
    resolve_hook_name,
)
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook
from sae_lens_sparsemax.processes.failures import one_failure_ends_all
from sae_lens_sparsemax.processes.together import gathered, join, own_part
from sae_lens_sparsemax.training.ranks_runner import on_own_device
from sae_lens_sparsemax.training.sources import (
    image_loader,
    language_model,
    n_tokens_drawn,
    require_sources,
    run_identity,
    text_dataset,
    vision_model,
)
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig


def cache_activations(
    cfg: Any, override_model: Any = None, override_dataset: Any = None, shard_bytes: int = SHARD_BYTES
) -> Manifest:
    """Store the activations that a training run of the same configuration would read.

    Each image or context is stored once: as many as the run needs, or all there are. The same call goes on with what
    is there, also when more are asked for. Of text, the order is that of the data set, as in training; of images, that
    of the seed. The processes that torchrun started, however many, share the work and make the cache that one makes.

    Args:
        cfg: a training configuration, for text or vision, with `cached_activations_path`; left as it is.
        override_model, override_dataset: used in place of what `cfg` names.
        shard_bytes: size at which a shard is finished.

    Returns:
        What the cache holds.

    Raises:
        ValueError: no path, model, hook or data do not fit, the disk is too small, or the folder holds a cache of
            something else. Of several processes one raises it; SystemExit on the others.
    """
    has_others = join()
    with one_failure_ends_all("with the same command"):
        if cfg.cached_activations_path is None:
            raise ValueError("cached_activations_path must name the folder to store activations in, got None")
        require_writable(cfg.cached_activations_path, "cached_activations_path")
        require_sources(cfg, without_data=override_dataset is not None)
        cfg = on_own_device(cfg) if has_others else copy.copy(cfg)
        prepare = _images if isinstance(cfg, VisionSAERunnerConfig) else _text
        writer, batches, n_tokens = prepare(cfg, override_model, override_dataset, shard_bytes)
        return writer.write(batches, n_tokens)


def _images(
    cfg: VisionSAERunnerConfig[Any], model: Any, dataset: Any, shard_bytes: int
) -> tuple[CacheWriter, Batches, int]:
    model = model if model is not None else vision_model(cfg)
    images = image_loader(cfg, model, dataset)
    source = ImageActivations(
        VisionAtHook(model, cfg.hook_name, cfg.tokens),
        images,
        dtype=str_to_dtype(cfg.cached_activations_dtype),
        device="cpu",
        autocast=cfg.autocast_model,
    )
    order = {name: getattr(cfg, name) for name in ("seed", "store_batch_size_images", "cached_activations_dtype")}
    made_from = run_identity(cfg, model) | cache_order(
        images.data, cfg.image_column, order | {"shard_bytes": shard_bytes}
    )
    per_image = source.at_hook.n_tokens
    writer = CacheWriter(
        Path(cfg.cached_activations_path or ""),
        made_from,
        source.at_hook.width,
        cfg.cached_activations_dtype,
        "images",
        (cfg.store_batch_size_images, per_image),
        shard_bytes,
        part=own_part(),
        gather=gathered,
    )
    # The buffer is filled by whole batches of images, so it may hold one more.
    n_images = -(-n_tokens_drawn(cfg) // per_image) + cfg.store_batch_size_images
    if isinstance(images.data, Dataset):
        n_images = min(n_images, len(images.data))

    def batches(position: Position | None, wanted: Wanted) -> Iterator[ActivationBatch]:
        return source.batches(position, one_pass=True, wanted=wanted)

    return writer, batches, n_images * per_image


def _text(cfg: Any, model: Any, dataset: Any, shard_bytes: int) -> tuple[CacheWriter, Batches, int]:
    model = model if model is not None else language_model(cfg)
    cfg.hook_name = resolve_hook_name(model, cfg.hook_name)
    require_positions(model, cfg.context_size)
    width = check_hook_width(cfg.sae.d_in, hook_width(model, cfg.hook_name, cfg.hook_head_index), cfg.hook_name)
    data = dataset if dataset is not None else text_dataset(cfg)
    dtype = getattr(cfg, "cached_activations_dtype", "float32")
    order = {"store_batch_size_prompts": cfg.store_batch_size_prompts, "cached_activations_dtype": dtype}
    made_from = run_identity(cfg, model) | cache_order(data, None, order | {"shard_bytes": shard_bytes})
    cfg.sae, cfg.use_cached_activations = dataclasses.replace(cfg.sae, d_in=width), False
    store: Any = ResumableActivationsStore.from_config(model, cfg, data)
    require_one_context(store, cfg.dataset_path)
    batch = (cfg.store_batch_size_prompts, store.training_context_size)
    writer = CacheWriter(
        Path(cfg.cached_activations_path),
        made_from,
        width,
        dtype,
        "contexts",
        batch,
        shard_bytes,
        part=own_part(),
        gather=gathered,
    )
    # The buffer is filled by whole batches of contexts, so it may hold one more.
    n_tokens = n_tokens_drawn(cfg) + math.prod(batch)
    return writer, TextActivations(store).batches, n_tokens
