"""The tensors of a checkpoint that several processes wrote, each its part, in the format of ``torch.distributed``.

But: torch writes the list of what is there as a pickle, so a folder is read only once its checksums are right.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens.loading.pretrained_sae_loaders import get_sae_lens_config_from_disk
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from sae_lens_sparsemax.files import reading

SHARDS = "shards"
"""The folder of weights and optimizer in a checkpoint of several processes."""


def is_of_ranks(checkpoint: Path | str) -> bool:
    """Whether several processes wrote a checkpoint."""
    return (Path(checkpoint) / SHARDS).is_dir()


def sae_in_shards(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Tensors of the shapes and types of an SAE's, on the device "meta".

    Raises:
        ValueError: what is there cannot be read.
    """
    with reading(checkpoint / SHARDS):
        found = FileSystemReader(checkpoint / SHARDS).read_metadata().state_dict_metadata
        weights = {name.removeprefix("sae."): of for name, of in found.items() if name.startswith("sae.")}
        return {
            name: torch.empty(of.size, dtype=of.properties.dtype, device="meta")
            for name, of in weights.items()
            if isinstance(of, TensorStorageMetadata)
        }


def read_shards(tensors: dict[str, Any], checkpoint: Path, alone: bool = True) -> None:
    """Fill tensors, by the names under which they were written; several processes together, each its own part.

    Raises:
        Exception: what went wrong on some rank.
    """
    with said_by_torch(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
        load(tensors, checkpoint_id=checkpoint / SHARDS, no_dist=alone)


def shards_disk_loader(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What SAELens asks of a converter: the config, and the weights of all processes, whole."""
    weights = {name: torch.empty_like(tensor, device="cpu") for name, tensor in sae_in_shards(Path(path)).items()}
    read_shards({"sae": weights}, Path(path))
    return get_sae_lens_config_from_disk(path, device, cfg_overrides), weights


@contextmanager
def said_by_torch() -> Iterator[None]:
    """What went wrong on some rank as an error of Python's, not as torch's, which has the tracebacks of all ranks."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
