"""Making a runner on several processes: they meet (see `processes.together`), agree, and divide its SAE."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

from sae_lens_sparsemax.processes.failures import one_failure_ends_all
from sae_lens_sparsemax.processes.together import gathered, join, own_device, together
from sae_lens_sparsemax.settings.sentences import must_be, shown
from sae_lens_sparsemax.settings.values import DEVICES
from sae_lens_sparsemax.training.mesh import parallel_of, require_divisible
from sae_lens_sparsemax.training.ranks import ranks_of


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
            self.ranks = ranks_of(cfg) if has_others else None
            if self.ranks is None:
                make(self, cfg, *args, **kwargs)
                return
            with together(), self.ranks.mesh:  # inside which an SAE is made of the own concepts alone
                make(self, on_own_device(cfg), *args, **kwargs)
                require_divisible(self.sae.cfg, parallel_of(cfg))
            self.sae.shard(self.ranks.mesh)
            torch.manual_seed(self.ranks.seed(cfg.seed))

    return init


def _check(cfg: Any, settings: list[dict[str, Any]]) -> None:
    """Raise a ValueError unless the configuration is for as many processes as there are, and alike on all."""
    parallel, n_processes = parallel_of(cfg), max(1, len(settings))
    if parallel.size != n_processes:
        condition = f"the number of processes, {n_processes}, which torchrun --nproc-per-node starts"
        raise must_be("parallel.data × parallel.concepts", condition, parallel.size)
    for name, value in settings[0].items() if settings else ():
        if other := [each[name] for each in settings if each.get(name) != value]:
            raise ValueError(f"{name} must be the same on all ranks, got {shown(value)} and {shown(other[0])}")


def _settings(cfg: Any) -> dict[str, Any]:
    """What must be alike on all ranks: all but where files lie."""
    return {name: value for name, value in cfg.to_dict().items() if not name.endswith("_path") and name != "logger"}


def on_own_device(cfg: Any) -> Any:
    """A copy of a configuration in which `cuda` is this process's device by its number, as models ask for it."""
    cfg = copy.copy(cfg)
    cfg.sae = copy.copy(cfg.sae)
    for group, name in [(cfg.sae, "device"), *((cfg, name) for name in DEVICES)]:
        device = getattr(group, name, None)
        if device is not None and device != "with_model":
            setattr(group, name, own_device(device, name))
    return cfg
