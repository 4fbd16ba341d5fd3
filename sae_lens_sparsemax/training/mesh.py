"""How several processes share the training of one SAE, as settings: its concepts and its data, on a mesh of both.

Concepts are fastest on the mesh, so that those who share a dictionary are neighbours on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_sparsemax.sae.config import ARCHITECTURE
from sae_lens_sparsemax.settings.sentences import must_be

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


def parallel_of(cfg: Any) -> ParallelConfig:
    """How a runner's configuration is spread; one of SAELens's own is not."""
    return getattr(cfg, "parallel", None) or ParallelConfig()


def tokens_per_rank(cfg: Any) -> int:
    """Tokens that each process brings to a step."""
    return parallel_of(cfg).share_of(cfg.train_batch_size_tokens, "train_batch_size_tokens")


def require_shareable(cfg: Any) -> None:
    """Raise a ValueError unless a run can be shared by as many processes as its configuration says."""
    if (parallel := parallel_of(cfg)).size == 1:
        return
    tokens_per_rank(cfg)
    require_divisible(cfg.sae, parallel)
    if getattr(cfg, "compile_sae", False):
        raise must_be("compile_sae", "false on several ranks", True)


def require_divisible(sae: TrainingSAEConfig, parallel: ParallelConfig) -> None:
    """Raise a ValueError unless SAEs of this configuration can be divided among ranks."""
    if sae.architecture() != ARCHITECTURE:
        raise must_be("sae.architecture", f"{ARCHITECTURE!r} on several ranks", sae.architecture())
    if parallel.concepts > 1 and (gate := getattr(sae, "gate", "sparsemax")) != "sparsemax":
        raise must_be("sae.gate", "'sparsemax' where ranks share the concepts", gate)
