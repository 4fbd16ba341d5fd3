"""The record of a training run: one JSON line per logging step, and pictures at the end, wandb on or off.

SAELens's trainer logs to wandb only. ``TrainingLog`` listens to its public ``step`` seam instead, so it
works with every SAELens architecture and also inside ``MultiSAETrainer``.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_sparsemax.files import atomic_write_text
from sae_lens_sparsemax.training.plots import plot_l0_histogram, plot_training_curves

METRICS_FILENAME = "metrics.jsonl"
CURVES_FILENAME = "training_curves.png"
L0_HISTOGRAM_FILENAME = "l0_histogram.png"


class TrainingLog:
    """Writes ``metrics.jsonl`` while a trainer runs, and two pictures when it is closed.

    Each line holds ``step``, ``n_training_samples``, ``seconds`` (wall time spent training, resumed runs
    added up), everything in the trainer's own log dictionary, and ``metrics/dead_fraction``.
    Values that are not finite are written as null.

    Args:
        folder: where the files go; made if absent.
        every: logging interval in steps; the last step of a run is always logged.
        histogram_steps: how many of the last logged steps the L0 histogram covers.
    """

    def __init__(self, folder: Path | str, every: int = 10, histogram_steps: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, but {every} was given.")
        self.folder = Path(folder)
        self.every = every
        self._l0_per_step: deque[torch.Tensor] = deque(maxlen=histogram_steps)
        self._seconds_before = 0.0
        self._started = 0.0
        self._attached = False

    @property
    def metrics_path(self) -> Path:
        """The JSON-lines file."""
        return self.folder / METRICS_FILENAME

    def attach(self, trainer: SAETrainer[Any, Any]) -> None:
        """Log the steps of ``trainer`` from now on.

        Lines of an earlier run beyond the trainer's position (all of them for a fresh trainer) are
        dropped, so a resumed run has each step once.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [
            line for line in read_metrics(self.metrics_path) if line["n_training_samples"] <= trainer.n_training_samples
        ]
        atomic_write_text(self.metrics_path, "".join(json.dumps(line) + "\n" for line in kept))
        self._seconds_before = kept[-1]["seconds"] if kept else 0.0
        self._started = time.perf_counter()
        self._attached = True
        original_step = trainer.step

        def step_and_log(batch: torch.Tensor) -> TrainStepOutput:
            output = original_step(batch)
            # The trainer counts a step after step() returns.
            step = trainer.n_training_steps + 1
            if step % self.every == 0 or trainer.n_training_samples >= trainer.cfg.total_training_samples:
                self._write(trainer, output, step)
            return output

        trainer.step = step_and_log

    @torch.no_grad()
    def _write(self, trainer: SAETrainer[Any, Any], output: TrainStepOutput, step: int) -> None:
        self._l0_per_step.append(l0_per_token(output.feature_acts))
        line = {
            "step": step,
            "n_training_samples": trainer.n_training_samples,
            "seconds": round(self._seconds_before + time.perf_counter() - self._started, 3),
            **trainer.build_train_step_log_dict(output, trainer.n_training_samples),
            "metrics/dead_fraction": trainer.dead_neurons.float().mean().item(),
        }
        finite = {key: value if math.isfinite(value) else None for key, value in line.items()}
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def close(self) -> None:
        """Draw the training curves and, if a step was logged since ``attach``, the L0 histogram."""
        if not self._attached or not read_metrics(self.metrics_path):
            return
        plot_training_curves(self.metrics_path, self.folder / CURVES_FILENAME)
        if self._l0_per_step:
            plot_l0_histogram(torch.cat(list(self._l0_per_step)), self.folder / L0_HISTOGRAM_FILENAME)


def attach_to_each(trainer: MultiSAETrainer, folder: Path | str, every: int = 10) -> dict[str, TrainingLog]:
    """One log per SAE of a ``MultiSAETrainer``, in ``folder/<its name>``; close each at the end."""
    logs = {name: TrainingLog(Path(folder) / name, every) for name in trainer.trainers}
    for name, log in logs.items():
        log.attach(trainer.trainers[name])
    return logs


def l0_per_token(feature_acts: torch.Tensor) -> torch.Tensor:
    """Number of non-zero activations of each token.

    Args:
        feature_acts: ``(n_tokens, d_sae)``, dense or sparse (any layout).

    Returns:
        ``(n_tokens,)`` int64 on the CPU.
    """
    if feature_acts.layout == torch.strided:
        return (feature_acts != 0).sum(dim=-1).cpu()
    acts = feature_acts.to_sparse_coo().coalesce()
    rows = acts.indices()[0][acts.values() != 0]
    return torch.bincount(rows, minlength=acts.shape[0]).cpu()


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line cut short by a crash is left out, no file gives [].

    Raises:
        ValueError: a line other than the last is not JSON.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    metrics: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            metrics.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"Line {number} of {path} is not JSON: {line!r:.80}.") from error
    return metrics
