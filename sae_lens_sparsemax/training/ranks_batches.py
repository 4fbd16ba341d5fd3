"""What the ranks of a run agree on whenever a batch is drawn: whether to go on.

A rank that stops, or fails, alone would leave the others waiting for it. So each batch is followed by one small
message between all ranks: who was told to stop, and who has no batch.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from sae_lens.training.types import DataProvider

from sae_lens_sparsemax.models.encoding import paused
from sae_lens_sparsemax.processes.together import together


class AgreedBatches:
    """A rank's own batches, of which the next one is there on all ranks or on none.

    Args:
        batches: those of this rank.
        stop_asked_for: set when this rank is told to stop.
    """

    def __init__(self, batches: DataProvider, stop_asked_for: threading.Event) -> None:
        self._batches, self._stop_asked_for = batches, stop_asked_for
        self.is_to_stop = False
        """Whether any rank was told to stop when the last batch was drawn; alike on all."""

    def __iter__(self) -> AgreedBatches:
        return self

    def __next__(self) -> torch.Tensor:
        """This rank's next batch.

        Raises:
            Exception: what drawing it raised, on the first rank where it did; SystemExit on the others.
        """
        batch, error = torch.empty(0), None
        try:
            batch = next(self._batches)
        except StopIteration:
            error = ValueError("the data must last until the end of the run, got no further batch")
        except Exception as caught:
            error = caught
        told = torch.tensor([self._stop_asked_for.is_set(), error is not None], dtype=torch.int32)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        self.is_to_stop, has_failed = map(bool, told.tolist())
        if has_failed:
            with together():
                if error is not None:
                    raise error
        return batch

    def paused(self) -> AbstractContextManager[None]:
        """See `MixedActivationsStore.paused`."""
        return paused(self._batches)
