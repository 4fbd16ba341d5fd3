"""What cached activations were made from, and whether that is what a run needs.

The weights decide which model it was, not its name: a model in another folder is the same model.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from sae_lens_sparsemax.files import digest_of
from sae_lens_sparsemax.models.hooked_vit import HookedViT

IMAGE_SETTINGS = (
    "model_name", "autocast_model", "hook_name", "tokens", "dataset_path", "dataset_config", "dataset_split",
    "image_column",
)  # fmt: skip
TEXT_SETTINGS = (
    "model_name", "model_kwargs", "autocast_lm", "hook_name", "hook_head_index", "dataset_path", "dataset_config",
    "dataset_split", "text_column", "held_out_fraction", "context_size", "seqpos_slice", "prepend_bos",
    "exclude_special_tokens", "disable_concat_sequences", "sequence_separator_token", "use_chat_formatting",
)  # fmt: skip
"""Settings of a run that decide the activations of an input, or say which inputs there are."""

# Enough to tell data sets apart without reading one of terabytes.
_ROWS_IN_FINGERPRINT = 32

_NAMES = {
    "model_weights_sha256": "the model's weights",
    "image_processor": "the preprocessing",
    "tokenizer_sha256": "the tokenizer",
    "dataset_fingerprint": "the data",
}


def cache_identity(model: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides the activations of an image or context, and the names of the data, as JSON values.

    Args:
        model: `HookedViT` or a hooked language model.
        settings: those of `IMAGE_SETTINGS` or `TEXT_SETTINGS`; the hook by the name that the model has for it.
    """
    identity = dict(settings)
    if isinstance(model, HookedViT):
        weights, dtype = model.tower, model.dtype
        identity["image_processor"] = model.image_processor.to_dict() if model.image_processor is not None else None
    else:
        weights, dtype = model, next(model.parameters()).dtype
        vocabulary = model.tokenizer.get_vocab() if getattr(model, "tokenizer", None) is not None else {}
        identity["tokenizer_sha256"] = digest_of(vocabulary).hexdigest()
    identity["model_weights_sha256"] = weights_sha256(weights)
    identity["model_dtype"] = str(dtype).removeprefix("torch.")
    return json.loads(json.dumps(identity))


def cache_order(
    data: Dataset | IterableDataset, image_column: str | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides which input is where in a cache: needed to go on with it, not to train on it.

    Args:
        data: what it is made from.
        image_column: column with the images; None for text.
        settings: further settings of the run that decide it.
    """
    fingerprint = dataset_fingerprint(data, image_column)
    return {"dataset_fingerprint": fingerprint, "streaming": not isinstance(data, Dataset), **settings}


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


def dataset_fingerprint(data: Dataset | IterableDataset, image_column: str | None = None) -> str:
    """SHA-256 over the number of rows, where known, and 32 of them: the encoded bytes of images, or whole rows.

    Those are evenly spaced in data with random access, and the first ones of a stream. `datasets` has a
    fingerprint of its own, but it is another one in each process for data made in memory, and streams have none.
    """
    if image_column is not None:
        data = data.select_columns([image_column])
    if isinstance(data, Dataset):
        n_rows = len(data)
        rows = data.select(sorted({n_rows * i // _ROWS_IN_FINGERPRINT for i in range(_ROWS_IN_FINGERPRINT)}))
    else:
        n_rows = -1
        rows = itertools.islice(data, _ROWS_IN_FINGERPRINT)
    digest = hashlib.sha256(f"{n_rows} {'images' if image_column is not None else 'rows'}\n".encode())
    for row in rows:
        encoded = _bytes_of(row[image_column]) if image_column is not None else digest_of(row).hexdigest().encode()  # type: ignore[index]
        digest.update(hashlib.sha256(encoded).digest())
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
