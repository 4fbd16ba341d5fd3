"""Stopping a run between two steps on Ctrl-C or SIGTERM, so that what is saved is consistent.

SAELens raises from the signal handler, in the middle of a step: weights, optimizer and counters may then
belong to different steps.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_between_steps(trainer: SAETrainer[Any, Any], save: Callable[[], None]) -> Iterator[None]:
    """Inside the block, the first signal ends training after the current step; ``save`` runs, then it raises.

    A second signal raises KeyboardInterrupt at once, and nothing is saved. The previous signal handlers
    are back after the block. Outside the main thread, where Python allows no handlers, nothing changes.

    Raises:
        InterruptedException: SAELens's, after ``save``.
    """
    requested = threading.Event()

    def on_signal(number: int, _frame: Any) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        logger.warning("%s: stopping after this step; once more stops without saving.", signal.Signals(number).name)

    # The first thing the trainer's loop does in each step, when the previous one is complete and counted.
    begin_step = trainer.maybe_reset_sparsity

    def begin_step_or_stop() -> dict[str, Any]:
        if requested.is_set():
            save()
            raise InterruptedException("training was stopped by a signal")
        return begin_step()

    trainer.maybe_reset_sparsity = begin_step_or_stop
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
