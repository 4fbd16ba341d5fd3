"""How a run over several processes ends when one of them fails or is gone: all end, and one says in a sentence why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist
from sae_lens.training._interruption import InterruptedException
from torch.distributed import distributed_c10d


@contextmanager
def one_failure_ends_all(anew: str, is_agreed: bool = False) -> Iterator[None]:
    """Inside the block the ranks of a run work together, and the first one to leave it with an error ends the run.

    In one process, nothing but the block. Blocks may not be nested.

    With gloo the others notice at once, as its connections break. NCCL lets them wait for the time limit of its
    collectives; torchrun, which notices as well, ends them before.

    Args:
        anew: how to start the run again, to end a sentence with.
        is_agreed: all ranks leave the block with whatever else one leaves it with, and can go on together.

    Raises:
        ValueError: another rank has ended without a word, as with kill -9; said by the first to notice.
        Exception: what the block raised, if no other rank failed before; SystemExit otherwise.
    """
    try:
        yield
    except InterruptedException:  # agreed on, see `ranks_batches.py`
        raise
    except Exception as error:
        if not dist.is_initialized() or (is_agreed and not _is_of_a_connection(error)):
            raise
        size, is_first = dist.get_world_size(), _is_first_to_fail()
        _let_the_others_notice()
        if not is_first:
            raise SystemExit(2) from error
        if not _is_of_a_connection(error):
            raise
        raise ValueError(
            f"another of the {size} processes of this run has ended or cannot be reached, so the run cannot go on; "
            f"start it again {anew}"
        ) from error


def _is_of_a_connection(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _is_first_to_fail() -> bool:
    # torchrun keeps the store, so it outlives the ranks.
    with suppress(RuntimeError):
        return distributed_c10d._get_default_store().add("ranks that failed", 1) == 1
    return True


def _let_the_others_notice() -> None:
    # NCCL would wait for the others before it closes.
    with_nccl = "nccl" in str(dist.get_backend_config())
    with suppress(RuntimeError):
        (distributed_c10d._abort_process_group if with_nccl else dist.destroy_process_group)()
