"""What cached activations were made from, and whether that is what a run needs.

The weights decide which model it was, not its name: a model in another folder is the same model.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from sae_lens_sparsemax.data.images import ImageDataset
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig

# Enough to tell data sets apart without reading one of terabytes.
_IMAGES_IN_FINGERPRINT = 32

_NAMES = {
    "model_weights_sha256": "the model's weights",
    "image_processor": "the preprocessing",
    "dataset_fingerprint": "the images",
}


def cache_identity(cfg: VisionSAERunnerConfig[Any], model: HookedViT) -> dict[str, Any]:
    """All that decides the activations of an image, and the names of the images, as JSON values."""
    identity = {
        "model_name": cfg.model_name,
        "model_weights_sha256": weights_sha256(model.tower),
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "autocast_model": cfg.autocast_model,
        "hook_name": model.resolve_hook_name(cfg.hook_name),
        "tokens": cfg.tokens,
        "image_processor": model.image_processor.to_dict() if model.image_processor is not None else None,
        "dataset_path": cfg.dataset_path,
        "dataset_config": cfg.dataset_config,
        "dataset_split": cfg.dataset_split,
        "image_column": cfg.image_column,
    }
    return json.loads(json.dumps(identity))


def cache_order(cfg: VisionSAERunnerConfig[Any], data: ImageDataset) -> dict[str, Any]:
    """What decides which image is where in a cache: needed to go on with it, not to train on it."""
    return {
        "dataset_fingerprint": dataset_fingerprint(data, cfg.image_column),
        "streaming": not isinstance(data, Dataset),
        "seed": cfg.seed,
        "store_batch_size_images": cfg.store_batch_size_images,
        "cached_activations_dtype": cfg.cached_activations_dtype,
    }


def require_same(found: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    """Raise one `ValueError` that names every difference between a cache and what a run needs."""
    differences = [
        f"{_NAMES.get(key, repr(key))} ({_difference(found.get(key), value)})"
        for key, value in expected.items()
        if key != "model_name" and found.get(key) != value
    ]
    if differences:
        raise ValueError(
            f"The cached activations in {str(folder)!r}, of the model {found.get('model_name')!r}, were made for "
            f"something else; different are {'; '.join(differences)}. Cache into another folder, or change the run."
        )


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a module's tensors, on whatever device they are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def dataset_fingerprint(data: ImageDataset, image_column: str) -> str:
    """SHA-256 over the number of images, where known, and the encoded bytes of 32 of them.

    Those are evenly spaced in data with random access, and the first ones of a stream. `datasets` has a
    fingerprint of its own, but it is another one in each process for data made in memory, and streams have none.
    """
    if isinstance(data, Dataset):
        n_rows = len(data)
        rows = sorted({n_rows * i // _IMAGES_IN_FINGERPRINT for i in range(_IMAGES_IN_FINGERPRINT)})
        images = data.select(rows)[image_column]
    else:
        n_rows = -1
        images = (row[image_column] for row in data.take(_IMAGES_IN_FINGERPRINT))
    digest = hashlib.sha256(f"{n_rows} images\n".encode())
    for image in images:
        digest.update(hashlib.sha256(_bytes_of(image)).digest())
    return digest.hexdigest()


def _bytes_of(encoded: Any) -> bytes:
    if encoded is None:
        return b""
    if encoded.get("bytes") is not None:
        return encoded["bytes"]
    path = Path(encoded["path"])
    return path.read_bytes() if path.is_file() else str(path).encode()


def _difference(found: Any, expected: Any) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [key for key in sorted({*found, *expected}) if found.get(key) != expected.get(key)]
        return ", ".join(f"{key}: {_difference(found.get(key), expected.get(key))}" for key in keys)
    short = [str(value)[:12] if len(str(value)) == 64 else repr(value) for value in (found, expected)]
    return f"{short[0]} there, {short[1]} here"
