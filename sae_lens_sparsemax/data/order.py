"""The order in which inputs, images or contexts, are read: a place in it, a random one, and whose turn a batch is."""

from collections.abc import Callable
from typing import Any

import torch

Position = dict[str, Any]
"""A place in the endless order of inputs, as JSON values."""

Wanted = Callable[[int], bool]
"""Whether a batch is wanted; it is told how many inputs come before it."""


def everything(_: int) -> bool:
    """Every batch is wanted."""
    return True


def of_part(part: tuple[int, int], start: int, size: int) -> Wanted:
    """What one of several processes takes, `part` saying which of how many: `size` inputs in turn, from `start` on."""
    return lambda number: (number - start) // size % part[1] == part[0]


def permutation(n_rows: int, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    """The random order of a pass over a data set, `(n_rows,)`; by default the one order in which images are shown."""
    return torch.randperm(n_rows, generator=generator_of_pass(seed, epoch))


def generator_of_pass(seed: int, epoch: int) -> torch.Generator:
    """What shuffles a pass; seeds of successive passes, and of runs with neighbouring seeds, do not meet."""
    return torch.Generator().manual_seed(seed_of(seed * 1_000_003 + epoch))


def seed_of(number: int) -> int:
    """A number as a seed that torch takes: itself, or what 64 bits leave of it where products of seeds need more."""
    return number if -(2**63) <= number < 2**64 else number % 2**64
