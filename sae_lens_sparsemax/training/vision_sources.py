"""From a vision run's configuration to its model, its images and its activations."""

from typing import Any

from sae_lens.util import str_to_dtype

from sae_lens_sparsemax.activations.cache_identity import cache_identity
from sae_lens_sparsemax.activations.cached import CachedActivations
from sae_lens_sparsemax.activations.vision_store import ActivationSource, ModelActivations
from sae_lens_sparsemax.data.image_loader import ImageLoader
from sae_lens_sparsemax.data.images import ImageDataset, encoded_images, load_image_dataset
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.loading import load_vision_model
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig


def model_of(cfg: VisionSAERunnerConfig[Any]) -> HookedViT:
    """The model that a configuration names, where and in the type it says.

    Raises:
        ValueError: see `load_vision_model`.
    """
    return load_vision_model(
        cfg.model_name,
        cfg.model_device or cfg.device,
        str_to_dtype(cfg.model_dtype),
        **cfg.model_from_pretrained_kwargs,
    )


def image_loader(cfg: VisionSAERunnerConfig[Any], model: HookedViT, dataset: ImageDataset | None) -> ImageLoader:
    """The training images in the order of the seed; `dataset` stands for the one that `cfg` names.

    Raises:
        ValueError: the model cannot prepare images, or the data set is not usable (see `load_image_dataset`).
    """
    if model.image_processor is None:
        raise ValueError(f"The model {cfg.model_name!r} has no image processor to prepare images with.")
    if dataset is None:
        dataset = load_image_dataset(
            cfg.dataset_path,
            split=cfg.dataset_split,
            config=cfg.dataset_config,
            image_column=cfg.image_column,
            streaming=cfg.streaming,
        )
    return ImageLoader(
        encoded_images(dataset, cfg.image_column),
        model.image_processor,
        cfg.store_batch_size_images,
        image_column=cfg.image_column,
        n_workers=cfg.n_decode_workers,
        seed=cfg.seed,
        max_bad_fraction=cfg.max_bad_image_fraction,
    )


def activation_source(
    cfg: VisionSAERunnerConfig[Any], model: HookedViT, dataset: ImageDataset | None
) -> ActivationSource:
    """What a training run reads: cached activations if `cfg` names a cache, else the model on images.

    Raises:
        ValueError: the images or the cache cannot be used, or both a cache and a data set are given.
    """
    dtype = str_to_dtype(cfg.dtype)
    if cfg.cached_activations_path is None:
        return ModelActivations(
            model,
            image_loader(cfg, model, dataset),
            cfg.hook_name,
            cfg.tokens,
            dtype=dtype,
            device=cfg.act_store_device,
            autocast=cfg.autocast_model,
        )
    if dataset is not None:
        raise ValueError("Cached activations are read instead of images: give a data set or a cache, not both.")
    return CachedActivations(
        cfg.cached_activations_path,
        cfg.store_batch_size_images,
        seed=cfg.seed,
        dtype=dtype,
        device=cfg.act_store_device,
        expected=cache_identity(cfg, model),
    )
