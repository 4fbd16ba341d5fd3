"""What a run over several processes says when one of them is gone: one sentence, from one of those that are left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from sae_lens_sparsemax.training.mesh import Ranks


@contextmanager
def a_lost_rank_ends_all(ranks: Ranks | None, config: Any) -> Iterator[None]:
    """Inside the block the ranks of a run work together; where one has ended by itself, the others end too.

    With gloo they notice at once, as its connections break; NCCL waits until the time limit of its collectives, or
    until torchrun, which notices at once, ends the others.

    Raises:
        ValueError: a rank is lost, on the first rank to notice; SystemExit on the others.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks is None or not _is_of_a_connection(error):
            raise
        if not _is_first_to_notice():
            raise SystemExit(2) from error
        how = "with --resume" if config.checkpoint_path is not None else "anew, and with a checkpoint_path next time"
        raise ValueError(
            f"another of the {ranks.size} processes of this run has ended or cannot be reached, so the run cannot go "
            f"on; start it again {how}"
        ) from error


def _is_of_a_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _is_first_to_notice() -> bool:
    # torchrun keeps the store, so it outlives the ranks.
    with suppress(RuntimeError):
        return dist.distributed_c10d._get_default_store().add("ranks that noticed a loss", 1) == 1
    return True
