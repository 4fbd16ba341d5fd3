"""Rules that values follow which the settings of several commands have, beyond their types."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from sae_lens_sparsemax.settings.sentences import must_be

DEVICES = ("device", "model_device", "llm_device", "act_store_device")
"""The settings that name a torch device, or `with_model`."""
WRITTEN_PATHS = (
    "output_path", "checkpoint_path", "cached_activations_path", "resume_from_checkpoint", "from_pretrained_path",
)  # fmt: skip
"""The settings that name files and folders of the user's, which no library reads as it likes."""
# Bytes; a name goes on with settings, and with what marks a folder that is being written.
_LONGEST_NAME = 120


def refuse_repeated(name: str, values: Collection[Any]) -> None:
    """Raise a ValueError where two of the values of a setting are equal: 3 and 3.0 are."""
    if len(set(values)) < len(values):
        raise must_be(name, "different from each other", list(values))


def check_file_name(name: str, value: str) -> None:
    """Raise a ValueError unless the setting `name` can be, or begin, the name of a file and no path."""
    fits = 0 < len(value.encode()) <= _LONGEST_NAME and value == value.strip() and value.isprintable()
    if not fits or value in (".", "..") or "/" in value or "\\" in value:
        condition = f"a file name of at most {_LONGEST_NAME} bytes, without slashes, breaks and spaces at its ends"
        raise must_be(name, condition, value)


def expanded(path: str | Path) -> Path:
    """A path with `~` at its beginning read as the user's folder; one that names no user is left as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  which raises there


def written_path(name: str, value: str) -> str:
    """The setting `name` as the path that it means; a ValueError where it is empty, which would be the folder here."""
    if not value.strip():
        raise must_be(name, "a path", value)
    return str(expanded(value)) if value.startswith("~") else value


def check_share(name: str, value: float | None) -> None:
    """Raise a ValueError unless the setting `name` is not given or a number from 0 to 1."""
    if value is not None and not 0 <= value <= 1:
        raise must_be(name, "between 0 and 1", value)


def check_held_out_fraction(value: float | None) -> None:
    """Raise a ValueError unless a share of the documents can be held out twice, and leave some to train on."""
    if value is not None and not 0 <= value < 0.5:
        raise must_be("held_out_fraction", "at least 0 and below 0.5", value)


def check_device(name: str, value: str) -> None:
    """Raise a ValueError unless the setting `name` is a device that torch finds on this machine."""
    if value == "with_model":
        return
    try:
        device = torch.device(value)
    except RuntimeError as error:
        raise must_be(name, "a torch device such as cpu, cuda or mps", value) from error
    kind, index = device.type, device.index or 0
    try:
        n_devices = torch.get_device_module(kind).device_count()
    except RuntimeError:  # a kind that only names things, as meta, or whose package is not there
        n_devices = 0
    if index >= n_devices:
        why = f"{n_devices} of the kind {kind}" if n_devices else f"no {kind.upper()}, so cpu"
        raise must_be(name, f"a device that torch finds here ({why})", value)
