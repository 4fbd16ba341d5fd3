"""From a run's configuration to its model, its data and its activations."""

import logging
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.util import str_to_dtype

from sae_lens_sparsemax.activations.cache_files import MANIFEST_FILENAME, read_manifest
from sae_lens_sparsemax.activations.cache_identity import IMAGE_SETTINGS, TEXT_SETTINGS, cache_identity
from sae_lens_sparsemax.activations.cache_reader import CachedActivations
from sae_lens_sparsemax.activations.sources import ActivationSource, ImageActivations
from sae_lens_sparsemax.data.image_loader import ImageLoader
from sae_lens_sparsemax.data.images import (
    ImageDataset,
    encoded_images,
    image_column_of,
    load_image_dataset,
    split_of,
)
from sae_lens_sparsemax.data.loading import refuse_missing_data
from sae_lens_sparsemax.data.texts import load_text_dataset, part_of_dataset
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.language_models import load_language_model
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook
from sae_lens_sparsemax.training.mesh import parallel_of
from sae_lens_sparsemax.training.ranks import Ranks, own_rows, share
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig

logger = logging.getLogger(__name__)


def require_sources(cfg: Any, *, without_data: bool, from_cache: bool = False) -> None:
    """See that the data and the cache that a run of either kind names are there, before its model is loaded.

    Args:
        cfg: the run's configuration.
        without_data: whether the data set that it names is not read.
        from_cache: whether a cache of ours is read.

    Raises:
        ValueError: one is missing.
    """
    if not without_data:
        refuse_missing_data(cfg.dataset_path)
    if from_cache:
        read_manifest(Path(cfg.cached_activations_path))


def vision_model(cfg: VisionSAERunnerConfig[Any]) -> HookedViT:
    """The vision model that a configuration names, where and in the type it says.

    Raises:
        ValueError: see `HookedViT.from_pretrained`.
    """
    return HookedViT.from_pretrained(
        cfg.model_name,
        cfg.model_device or cfg.device,
        str_to_dtype(cfg.model_dtype),
        **cfg.model_from_pretrained_kwargs,
    )


def language_model(cfg: LanguageModelSAERunnerConfig[Any]) -> Any:
    """The language model that a configuration names.

    Raises:
        ValueError: see `load_language_model`.
    """
    return load_language_model(
        cfg.model_class_name,
        cfg.model_name,
        cfg.hook_name,
        cfg.llm_device or cfg.device,
        cfg.model_from_pretrained_kwargs,
    )


def text_dataset(cfg: LanguageModelSAERunnerConfig[Any]) -> Dataset | IterableDataset:
    """The training text that a configuration names, without what it holds out.

    Raises:
        ValueError: see `load_text_dataset` and `part_of_dataset`.
    """
    dataset = load_text_dataset(
        cfg.dataset_path,
        split=getattr(cfg, "dataset_split", "train"),
        config=getattr(cfg, "dataset_config", None),
        text_column=getattr(cfg, "text_column", "text"),
        streaming=cfg.streaming,
        use_chat_formatting=cfg.use_chat_formatting,
    )
    fraction = getattr(cfg, "held_out_fraction", 0.0)
    return part_of_dataset(dataset, "train", fraction, cfg.dataset_path) if fraction else dataset


def image_loader(
    cfg: VisionSAERunnerConfig[Any], model: HookedViT, dataset: ImageDataset | None, ranks: Ranks | None = None
) -> ImageLoader:
    """The training images in the order of the seed, of several ranks this one's; `dataset` stands for that of `cfg`.

    What `cfg` leaves to the data, split and column, is written there as found.

    Raises:
        ValueError: the model cannot prepare images, or the data set is not usable (see `load_image_dataset`).
    """
    if model.image_processor is None:
        raise ValueError(f"The model {cfg.model_name!r} has no image processor to prepare images with.")
    if dataset is None:
        cfg.dataset_split = cfg.dataset_split or split_of(cfg.dataset_path, cfg.dataset_config, ["train"]) or "train"
        dataset = load_image_dataset(
            cfg.dataset_path,
            split=cfg.dataset_split,
            config=cfg.dataset_config,
            image_column=cfg.image_column,
            streaming=cfg.streaming,
        )
    else:
        dataset = encoded_images(dataset, cfg.image_column)
    cfg.image_column = cfg.image_column or image_column_of(dataset)
    return ImageLoader(
        own_rows(dataset, ranks) if isinstance(dataset, IterableDataset) else dataset,
        model.image_processor,
        cfg.store_batch_size_images,
        image_column=cfg.image_column,
        n_workers=cfg.n_decode_workers,
        seed=cfg.seed,
        max_bad_fraction=cfg.max_bad_image_fraction,
        share=share(ranks),
    )


def image_source(
    cfg: VisionSAERunnerConfig[Any], model: HookedViT, dataset: ImageDataset | None, ranks: Ranks | None = None
) -> ActivationSource:
    """What a training run on images reads: cached activations if `cfg` names a cache, else the model on images.

    Raises:
        ValueError: the images or the cache cannot be used, or both a cache and a data set are given.
    """
    if cfg.cached_activations_path is None:
        return ImageActivations(
            VisionAtHook(model, cfg.hook_name, cfg.tokens),
            image_loader(cfg, model, dataset, ranks),
            dtype=str_to_dtype(cfg.dtype),
            device=cfg.act_store_device,
            autocast=cfg.autocast_model,
        )
    if dataset is not None:
        raise ValueError("Cached activations are read instead of images: give a data set or a cache, not both.")
    return cached_source(cfg, model, ranks)


def cached_source(cfg: Any, model: Any, ranks: Ranks | None = None) -> CachedActivations:
    """The cache that a configuration of either kind names, found to be of its model, hook and data.

    Raises:
        ValueError: see `CachedActivations`.
    """
    for name in ("dataset_split", "image_column"):
        if getattr(cfg, name, "") is None:  # was left to the data when the cache was made
            setattr(cfg, name, read_manifest(Path(cfg.cached_activations_path)).made_from.get(name))
    source = CachedActivations(
        cfg.cached_activations_path,
        cfg.store_batch_size_images if isinstance(cfg, VisionSAERunnerConfig) else cfg.store_batch_size_prompts,
        seed=cfg.seed,
        dtype=str_to_dtype(cfg.dtype),
        device=cfg.act_store_device,
        expected=run_identity(cfg, model),
        share=share(ranks),
    )
    n_there, n_drawn = source.manifest.n_tokens, n_tokens_drawn(cfg)
    if n_there < n_drawn and (ranks is None or ranks.is_first):
        # A run on the model would go on to further data, where there are any.
        logger.warning(
            "The cache in %r holds %s activations and the run reads %s, so it reads them %.1f times; if there are more "
            "data, 'sparsemax-sae cache-activations' with the same configuration adds what is missing.",
            cfg.cached_activations_path,
            f"{n_there:,}",
            f"{n_drawn:,}",
            n_drawn / n_there,
        )
    return source


def reads_cache(cfg: LanguageModelSAERunnerConfig[Any]) -> bool:
    """Whether a run on text reads a cache of ours: `cached_activations_path` names one.

    With `use_cached_activations` the path may also be that of a cache of SAELens's, a data set on disk, which
    SAELens's store reads.
    """
    path = cfg.cached_activations_path
    return path is not None and (not cfg.use_cached_activations or (Path(path) / MANIFEST_FILENAME).is_file())


def run_identity(cfg: Any, model: Any) -> dict[str, Any]:
    """What the activations of a run of either kind are made from (see `cache_identity`); `cfg` has the full hook."""
    names = IMAGE_SETTINGS if isinstance(cfg, VisionSAERunnerConfig) else TEXT_SETTINGS
    settings = {name: getattr(cfg, name, None) for name in names}
    if isinstance(cfg, VisionSAERunnerConfig):
        settings["hook_name"] = model.resolve_hook_name(cfg.hook_name)
    return cache_identity(model, settings)


def n_tokens_drawn(cfg: Any) -> int:
    """Activations that a run takes from its source: to train, to fill the shuffle buffer and to estimate norms."""
    tokens = cfg.training_tokens
    if isinstance(cfg, VisionSAERunnerConfig):
        tokens += cfg.n_batches_in_buffer * cfg.train_batch_size_tokens
    else:
        buffer = cfg.n_batches_in_buffer * len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
        tokens += buffer * parallel_of(cfg).size  # of each process
    if cfg.sae.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
        tokens += cfg.n_batches_for_norm_estimate * cfg.train_batch_size_tokens
    return int(tokens)
