"""Evaluation while a trainer runs: on time, at the end, in a file, and with wandb only if there is one.

SAELens's trainer evaluates only with wandb on. This listens to its public `step` seam instead.
"""

import json
from pathlib import Path
from typing import Any

import torch
import wandb
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_sparsemax.evaluation.vision_evaluator import VisionEvaluator
from sae_lens_sparsemax.files import atomic_write_text
from sae_lens_sparsemax.training.log import read_metrics

EVALUATION_FILENAME = "evaluation.jsonl"


class EvaluationLog:
    """Runs an evaluator after every so many steps and after the last, one JSON line each.

    A line holds `step`, `n_training_samples` and the evaluator's metrics.

    Args:
        folder: where `evaluation.jsonl` goes; None writes none.
        evaluator: what to run.
        every: steps between two evaluations; 0 evaluates after the last step alone.
    """

    def __init__(self, folder: Path | str | None, evaluator: VisionEvaluator, every: int):
        self.path = Path(folder) / EVALUATION_FILENAME if folder is not None else None
        self.evaluator, self.every = evaluator, every

    def attach(self, trainer: SAETrainer[Any, Any]) -> None:
        """Evaluate the trainer's SAE from now on; lines beyond the trainer's position are dropped."""
        if self.path is not None:
            kept = [
                line for line in read_metrics(self.path) if line["n_training_samples"] <= trainer.n_training_samples
            ]
            atomic_write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        original_step = trainer.step

        def step_and_evaluate(batch: torch.Tensor) -> TrainStepOutput:
            output = original_step(batch)
            step = trainer.n_training_steps + 1  # counted after step() returns
            is_last = trainer.n_training_samples >= trainer.cfg.total_training_samples
            if is_last or (self.every and step % self.every == 0):
                self._evaluate(trainer, step)
            return output

        trainer.step = step_and_evaluate

    def _evaluate(self, trainer: SAETrainer[Any, Any], step: int) -> None:
        metrics = self.evaluator(trainer.sae, trainer.data_provider, trainer.activation_scaler)
        if self.path is not None:
            line = {"step": step, "n_training_samples": trainer.n_training_samples, **metrics}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if trainer.cfg.logger.log_to_wandb:
            # The step before is the one SAELens logs under after this returns; wandb takes no earlier step later.
            wandb.log({f"evaluation/{name}": value for name, value in metrics.items()}, step=trainer.n_training_steps)
