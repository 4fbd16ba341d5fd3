"""This process among those that train one SAE together, and what of the data is its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from datasets.distributed import split_dataset_by_node
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from sae_lens_sparsemax.data.order import seed_of
from sae_lens_sparsemax.processes.together import is_first, own_part, together
from sae_lens_sparsemax.training.mesh import DIMENSIONS, parallel_of


class Ranks:
    """This process among those that train together. Whatever has no other word: all ranks call it, in one order."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        """Of `DIMENSIONS`."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and shows progress; asked of one rank alone."""
        return is_first()

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, on all."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def together(self) -> Any:
        """See `together`."""
        return together()

    def seed(self, seed: int) -> int:
        """A seed of this rank's own for what differs between ranks; asked of one rank alone."""
        return seed_of(seed * self.size + self.rank)


def ranks_of(cfg: Any) -> Ranks:
    """This process's place on the mesh of a configuration; all processes ask together."""
    parallel = parallel_of(cfg)
    shape = (parallel.data, parallel.concepts)
    return Ranks(init_device_mesh(torch.device(cfg.device).type, shape, mesh_dim_names=DIMENSIONS))


def share(ranks: Ranks | None) -> tuple[int, int]:
    """Which part of the data is this process's, counted from 0, and of how many."""
    return own_part() if ranks is not None else (0, 1)


def own_rows(data: Any, ranks: Ranks | None) -> Any:
    """The rows of a data set that are this rank's alone: every so many-th, or whole files of a stream if that is even.

    So all ranks together read a data set with random access in the order in which one process would.

    Raises:
        ValueError: there are none for this rank.
    """
    if ranks is None:
        return data
    if isinstance(data, Dataset):
        share = data.shard(ranks.size, ranks.rank, contiguous=False) if len(data) > ranks.rank else []
    else:
        share = split_dataset_by_node(data, ranks.rank, ranks.size)
    if next(iter(share), None) is None:
        raise ValueError(f"the data set must have a row for each of the {ranks.size} ranks, got none for {ranks.rank}")
    return share
