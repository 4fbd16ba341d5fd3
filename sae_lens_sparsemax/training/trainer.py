"""SAELens's trainer as our runs use it: all that we change in it, in one place.

SAELens's runners make their ``SAETrainer`` inside ``run()`` and offer no way to name another class. ``adapt`` turns the
instance that they made into a ``RunTrainer``, which overrides SAELens's small methods and copies no loop:

- ``step`` also writes the log, evaluates when it is time, and stops a run whose loss or weights are not finite;
- ``save_checkpoint`` leaves a whole checkpoint or none, and none of such a run;
- ``maybe_reset_sparsity``, the first call of each step, stops the run if a signal asked for it.

A run over several processes has a kind of its own, in ``ranks_trainer.py``.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.optim import get_lr_scheduler
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_sparsemax.files import atomic_directory
from sae_lens_sparsemax.models.encoding import sparse_acts
from sae_lens_sparsemax.sae.divergence import Diverged
from sae_lens_sparsemax.training.checkpoints import seal_checkpoint
from sae_lens_sparsemax.training.log import EvaluationLog, TrainingLog

logger = logging.getLogger(__name__)

# A GPU is not waited for in every step to learn whether the run has diverged.
_STEPS_BETWEEN_LOOKS = 100

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunTrainer(SAETrainer[Any, Any]):
    """``SAETrainer`` that logs without wandb, evaluates, saves whole checkpoints and stops between two steps.

    Made by ``adapt``, never by its constructor.
    """

    log: TrainingLog | None
    evaluation: EvaluationLog | None
    more_to_log: Callable[[], dict[str, Any]]
    _stop_asked_for: threading.Event
    _is_saving: bool
    """Whether the checkpoint of a run that was told to stop is being written, or is there."""
    _diverged: torch.Tensor
    """(3,) the first step whose loss or weights are not finite (0: none), its loss and its largest activation."""

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        """Run one step.

        Raises:
            Diverged: the loss or the weights are not finite; the last checkpoint is of an earlier step.
        """
        try:
            output = super().step(batch)
        except ValueError:
            self._refuse(self._diverged)  # of which this may be a consequence
            raise
        step = self.n_training_steps + 1  # counted after step() returns
        self._look_for_divergence(batch, output.loss.detach(), step)
        every = [record.every for record in (self.evaluation, self.log) if record is not None]
        every.append(1 if output.loss.device.type == "cpu" else _STEPS_BETWEEN_LOOKS)
        if any(self._is_due(step, steps) for steps in every):
            self._stop_if_diverged()
        if self.evaluation is not None and self._is_due(step, self.evaluation.every):
            self.evaluation.write(self, step)
        if self.log is not None and self._is_due(step, self.log.every):
            self.log.write(self, output, step)
        if self._is_due(step, every=0):
            self._say_if_nothing_is_explained(output)
        return output

    @torch.no_grad()
    def _look_for_divergence(self, batch: torch.Tensor, loss: torch.Tensor, step: int) -> None:
        # A gradient that is not finite shows in the weights, which it has changed by now.
        extremes = [torch.stack(weights.aminmax()).float() for weights in self._weights()]
        is_sound = torch.cat([loss.reshape(1).float(), *extremes]).isfinite().all()
        now = torch.stack([torch.full_like(loss, step), loss, batch.abs().max().to(loss)]).float()
        self._diverged = torch.where(is_sound | (self._diverged[0] > 0), self._diverged, now)

    @torch.no_grad()
    def _say_if_nothing_is_explained(self, output: TrainStepOutput) -> None:
        """Weights of a run that went wrong may be finite all the same."""
        explained = self.build_train_step_log_dict(output, self.n_training_samples)["metrics/explained_variance"]
        if -math.inf < explained < 0:  # minus infinity is that of a batch that does not vary
            logger.warning(
                "The reconstructions of the last batch are further off than its mean would be: explained variance "
                "%.3g. If the loss rose in the end, lower lr (%g).",
                explained,
                self.cfg.lr,
            )

    def _weights(self) -> list[torch.Tensor]:
        """All weights that this process holds."""
        return list(self.sae.parameters())

    def _stop_if_diverged(self) -> None:
        self._refuse(self._diverged)

    def _refuse(self, diverged: torch.Tensor) -> None:
        step, loss, largest = diverged.tolist()
        if step:
            raise Diverged(
                f"training stopped at step {step:.0f}: its loss ({loss:.4g}) and the weights after it must be finite; "
                f"lower lr ({self.cfg.lr:g}) or leave out activations as large as there (up to {largest:.4g}). "
                "No SAE is written; earlier checkpoints are kept."
            )

    def _is_due(self, step: int, every: int) -> bool:
        """Whether what happens ``every`` so many steps (0: never) and after the last one happens after this one."""
        is_last = self.n_training_samples >= self.cfg.total_training_samples
        return is_last or (every > 0 and step % every == 0)

    def sae_to_evaluate(self) -> TrainingSAE[Any]:
        """The SAE as it is, in one piece."""
        return self.sae

    def l0_per_token(self, output: TrainStepOutput) -> torch.Tensor:
        """(N,) how many concepts are active on each token of a step."""
        return sparse_acts(output.feature_acts).l0()

    @override
    def build_train_step_log_dict(self, output: TrainStepOutput, n_training_samples: int) -> dict[str, Any]:
        scaler = self.activation_scaler
        if scaler.whitening is not None:
            # Explained variance is that of the activations, as after training; scaling alone leaves it as it is.
            sae_in, sae_out = scaler.unscale(output.sae_in), scaler.unscale(output.sae_out)
            output = dataclasses.replace(output, sae_in=sae_in, sae_out=sae_out)
        return super().build_train_step_log_dict(output, n_training_samples) | self.more_to_log()

    @override
    def save_checkpoint(
        self,
        checkpoint_name: str,
        base_path: Path | str | None = None,
        wandb_aliases: list[str] | None = None,
    ) -> None:
        """Save as SAELens does; the checkpoint appears in one step, when all its files are written."""
        self._stop_if_diverged()
        base = base_path if base_path is not None else self.cfg.checkpoint_path
        if base is None:
            super().save_checkpoint(checkpoint_name, wandb_aliases=wandb_aliases)
            return
        with atomic_directory(Path(base) / checkpoint_name) as new:
            super().save_checkpoint(new.name, base_path=new.parent, wandb_aliases=wandb_aliases)
            seal_checkpoint(new)

    @override
    def _update_pbar(self, step_output: TrainStepOutput, pbar: Any, update_interval: int = 100) -> None:
        """Move the bar in each step, and leave it at its end; SAELens moves it every hundred steps."""
        if self.n_training_steps % update_interval == 0:
            super()._update_pbar(step_output, pbar, update_interval=1)
        pbar.update(min(self.n_training_samples, self.cfg.total_training_samples) - pbar.n)

    @override
    def maybe_reset_sparsity(self) -> dict[str, Any]:
        # The first thing the loop does in each step, when the previous one is complete and counted.
        if self._is_to_stop():
            if self.cfg.checkpoint_path is None:
                logger.warning("'checkpoint_path' is null: the interrupted run is not saved.")
            else:
                self._is_saving = True
                self.save_checkpoint(str(self.n_training_samples))
            raise InterruptedException("training was stopped by a signal")
        return super().maybe_reset_sparsity()

    def _is_to_stop(self) -> bool:
        return self._stop_asked_for.is_set()

    def _may_be_cut_short(self) -> bool:
        """Whether a second signal ends the run at once: until its last checkpoint is being written."""
        return not self._is_saving

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """Inside the block, the first Ctrl-C or SIGTERM ends training after the current step, with a checkpoint.

        SAELens raises from the signal handler, in the middle of a step: weights, optimizer and counters may then
        belong to different steps. A second signal raises KeyboardInterrupt at once, and nothing is saved, unless that
        checkpoint is being written by then; over several ranks it changes nothing. The previous handlers are back
        after the block. Outside the main thread, where Python allows no handlers, nothing changes.

        Raises:
            InterruptedException: SAELens's, when the checkpoint is saved.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, _frame: Any) -> None:
            if self._stop_asked_for.is_set():
                if self._may_be_cut_short():
                    raise KeyboardInterrupt
                return
            self._stop_asked_for.set()
            more = "; once more stops without saving" if self._may_be_cut_short() else ""
            logger.warning("%s: stopping after this step%s.", signal.Signals(number).name, more)

        previous = {number: signal.signal(number, on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def adapt(
    trainer: SAETrainer[Any, Any],
    *,
    log: TrainingLog | None = None,
    evaluation: EvaluationLog | None = None,
    more_to_log: Callable[[], dict[str, Any]] = dict,
    resumed: bool = False,
) -> RunTrainer:
    """Turn a trainer, before its first step and after its checkpoint is loaded, into a ``RunTrainer``.

    Args:
        trainer: SAELens's, also one of those in a ``MultiSAETrainer``; it is changed, and given back.
        log: writes the steps from now on; lines beyond the trainer's position are dropped from its file.
        evaluation: measures the SAE from now on, in the same way.
        more_to_log: gives further values for every step that is logged.
        resumed: a checkpoint was loaded.
    """
    _use_fused_adam(trainer.optimizer)
    if resumed:
        _continue_after_checkpoint(trainer)
    for record in (log, evaluation):
        if record is not None:
            record.start(trainer.n_training_samples)
    trainer.__class__ = RunTrainer
    assert isinstance(trainer, RunTrainer)
    trainer.log, trainer.evaluation, trainer.more_to_log = log, evaluation, more_to_log
    trainer._stop_asked_for, trainer._is_saving = threading.Event(), False
    trainer._diverged = torch.zeros(3, device=trainer.cfg.device)
    return trainer


def _use_fused_adam(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam update each tensor in one pass, where torch can: floating point tensors on CPU or CUDA."""
    for group in optimizer.param_groups:
        if all(p.is_floating_point() and p.device.type in {"cpu", "cuda"} for p in group["params"]):
            group["fused"], group["foreach"] = True, False


def _continue_after_checkpoint(trainer: SAETrainer[Any, Any]) -> None:
    """Correct what SAELens's ``load_trainer_state`` leaves wrong.

    - A checkpoint is written before its step is counted, so the restored step number is one behind; the
      learning-rate scheduler has counted every step.
    - Checkpoints due before the restored position would be written again, one per step.
    - The scheduler has the length of the run that wrote the checkpoint, which may have been another: a longer run
      would go on at the rate 0 that the earlier one ended with.
    """
    trainer.n_training_steps = trainer.lr_scheduler.last_epoch
    _restart_schedule(trainer)
    trainer.checkpoint_thresholds = [
        threshold for threshold in trainer.checkpoint_thresholds if threshold >= trainer.n_training_samples
    ]


def _restart_schedule(trainer: SAETrainer[Any, Any]) -> None:
    """Put the learning rate where a run of this length has it after as many steps, to the bit."""
    cfg = trainer.cfg
    assert cfg.lr_end is not None  # SAELens's trainer has set it
    for group in trainer.optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # the steps were taken before
        trainer.lr_scheduler = get_lr_scheduler(
            cfg.lr_scheduler_name,
            trainer.optimizer,
            training_steps=cfg.total_training_steps,
            lr=cfg.lr,
            warm_up_steps=cfg.lr_warm_up_steps,
            decay_steps=cfg.lr_decay_steps,
            lr_end=cfg.lr_end,
            num_cycles=cfg.n_restart_cycles,
        )
        for _ in range(trainer.n_training_steps):
            trainer.lr_scheduler.step()
