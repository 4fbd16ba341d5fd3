"""Several processes that train one SAE: how they share its concepts and its data.

They have met (see `processes.together`) and take their place on a mesh of (data, concepts), concepts fastest, so that
those who share a dictionary are neighbours on one machine.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from datasets.distributed import split_dataset_by_node
from sae_lens.saes.sae import TrainingSAEConfig
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from sae_lens_sparsemax.data.order import seed_of
from sae_lens_sparsemax.processes.failures import one_failure_ends_all
from sae_lens_sparsemax.processes.together import gathered, is_first, join, own_device, own_part, together
from sae_lens_sparsemax.sae.config import ARCHITECTURE
from sae_lens_sparsemax.settings.sentences import must_be, shown
from sae_lens_sparsemax.settings.values import DEVICES

DIMENSIONS = ("data", "concepts")


@dataclass(frozen=True)
class ParallelConfig:
    """How a run is spread over the processes that torchrun starts, one for each device.

    `train_batch_size_tokens` stays that of all together; `n_batches_in_buffer` and `store_batch_size_…` are of each
    process, which reads texts, images or stored activations of its own.

    Raises:
        ValueError: a number below 1.
    """

    data: int = 1
    """Groups of processes that each hold all concepts and see tokens of their own."""
    concepts: int = 1
    """Processes of a group, among which the concepts are divided; their devices should be of one machine. Times data,
    this is the number of processes that torchrun starts."""
    async_checkpoints: bool = False
    """Whether training goes on while a checkpoint is written, from a copy in the memory of the host."""

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"parallel.{name} must be at least 1, got {value}")
        if self.async_checkpoints and self.size == 1:
            raise must_be("parallel.async_checkpoints", "false in one process", True)

    @property
    def size(self) -> int:
        """All processes."""
        return self.data * self.concepts

    def share_of(self, number: int, name: str) -> int:
        """What each process has of a number of tokens.

        Raises:
            ValueError: it cannot be divided among them; `name` is that of the setting.
        """
        if number % self.size:
            condition = f"divisible by the {self.size} processes of parallel.data × parallel.concepts"
            raise must_be(name, condition, number)
        return number // self.size


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


def parallel_of(cfg: Any) -> ParallelConfig:
    """How a runner's configuration is spread; one of SAELens's own is not."""
    return getattr(cfg, "parallel", None) or ParallelConfig()


def tokens_per_rank(cfg: Any) -> int:
    """Tokens that each process brings to a step."""
    return parallel_of(cfg).share_of(cfg.train_batch_size_tokens, "train_batch_size_tokens")


def across_ranks(make: Callable[..., None]) -> Callable[..., None]:
    """Decorate the constructor of a runner, whose `cfg` comes first, so that several processes can share the run.

    It runs on all ranks with a copy of `cfg` for this rank's device, and `self.ranks` set; the SAE that it makes, alike
    everywhere, is divided among them, and torch's random state is this rank's own afterwards.
    """

    @functools.wraps(make)
    def init(self: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        has_others = join()
        with one_failure_ends_all("with the same command", is_agreed=True):
            settings = gathered(_settings(cfg)) if has_others else []
            with together():
                _check(cfg, settings)
            self.ranks = _ranks_of(cfg) if has_others else None
            if self.ranks is None:
                make(self, cfg, *args, **kwargs)
                return
            with together(), self.ranks.mesh:  # inside which an SAE is made of the own concepts alone
                make(self, on_own_device(cfg), *args, **kwargs)
                _require_shardable(self.sae.cfg, parallel_of(cfg))
            self.sae.shard(self.ranks.mesh)
            torch.manual_seed(self.ranks.seed(cfg.seed))

    return init


def _check(cfg: Any, settings: list[dict[str, Any]]) -> None:
    """Raise a ValueError unless the configuration is for as many processes as there are, alike, and can be shared."""
    parallel, n_processes = parallel_of(cfg), max(1, len(settings))
    if parallel.size != n_processes:
        condition = f"the number of processes, {n_processes}, which torchrun --nproc-per-node starts"
        raise must_be("parallel.data × parallel.concepts", condition, parallel.size)
    if n_processes == 1:
        return
    for name, value in settings[0].items():
        if other := [each[name] for each in settings if each.get(name) != value]:
            raise ValueError(f"{name} must be the same on all ranks, got {shown(value)} and {shown(other[0])}")
    _require_shardable(cfg.sae, parallel)
    if getattr(cfg, "compile_sae", False):
        raise must_be("compile_sae", "false on several ranks", True)


def _require_shardable(sae: TrainingSAEConfig, parallel: ParallelConfig) -> None:
    """Raise a ValueError unless SAEs of this configuration can be divided among ranks."""
    if sae.architecture() != ARCHITECTURE:
        raise must_be("sae.architecture", f"{ARCHITECTURE!r} on several ranks", sae.architecture())
    if parallel.concepts > 1 and (gate := getattr(sae, "gate", "sparsemax")) != "sparsemax":
        raise must_be("sae.gate", "'sparsemax' where ranks share the concepts", gate)


def _settings(cfg: Any) -> dict[str, Any]:
    """What must be alike on all ranks: all but where files lie."""
    return {name: value for name, value in cfg.to_dict().items() if not name.endswith("_path") and name != "logger"}


def _ranks_of(cfg: Any) -> Ranks:
    parallel = parallel_of(cfg)
    shape = (parallel.data, parallel.concepts)
    return Ranks(init_device_mesh(torch.device(cfg.device).type, shape, mesh_dim_names=DIMENSIONS))


def on_own_device(cfg: Any) -> Any:
    """A copy of a configuration in which `cuda` is this process's device by its number, as models ask for it."""
    cfg = copy.copy(cfg)
    cfg.sae = copy.copy(cfg.sae)
    for group, name in [(cfg.sae, "device"), *((cfg, name) for name in DEVICES)]:
        device = getattr(group, name, None)
        if device is not None and device != "with_model":
            setattr(group, name, own_device(device, name))
    return cfg


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
