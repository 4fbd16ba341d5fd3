"""SAELens's runner on synthetic data with ground truth, with the same log as every other run."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

from sae_lens.synthetic import SyntheticSAERunner, SyntheticSAERunnerResult, synthetic_sae_runner
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_sparsemax.training.log import TrainingLog


class SyntheticTrainingRunner(SyntheticSAERunner[Any]):
    """``SyntheticSAERunner`` that also writes ``metrics.jsonl`` and its pictures to ``output_path``.

    But: it does not resume; SAELens's synthetic runner cannot.
    """

    def run(self) -> SyntheticSAERunnerResult:
        """Train and evaluate; see ``SyntheticSAERunner.run``."""
        if self.cfg.output_path is None:
            return super().run()
        log = TrainingLog(Path(self.cfg.output_path), self.cfg.logger.wandb_log_frequency)

        class LoggedTrainer(SAETrainer[Any, Any]):
            def fit(self) -> Any:
                log.attach(self)
                return super().fit()

        # The host makes its trainer inside run() and hands it to no method that could be overridden.
        with mock.patch.object(synthetic_sae_runner, "SAETrainer", LoggedTrainer):
            try:
                return super().run()
            finally:
                log.close()
