"""Training an SAE on SAELens's synthetic data, whose true features are known."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import wandb
from sae_lens.saes.sae import TrainingSAE
from sae_lens.synthetic import SyntheticModel, SyntheticSAERunner, SyntheticSAERunnerResult, eval_sae_on_synthetic_data
from sae_lens.synthetic.training import SyntheticActivationIterator
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_sparsemax.files import read_tensors, save_tensors
from sae_lens_sparsemax.processes.together import require_one_process
from sae_lens_sparsemax.training.config import SyntheticRunnerConfig, with_width
from sae_lens_sparsemax.training.log import EvaluationLog
from sae_lens_sparsemax.training.runner import TrainingRunner

_STATE_FILENAME = "synthetic_store.safetensors"


class SyntheticTrainingRunner(TrainingRunner):
    """Trains on synthetic data as on any other: ``run()`` gives what ``SyntheticSAERunner.run`` gives.

    The model of the data, the SAE, the measures and the files of the result are those of SAELens's runner, which is
    held here; its ``run`` makes a trainer that nothing reaches, so the run itself is ``TrainingRunner``'s.

    Args:
        cfg: what to do; left as it is.
        override_synthetic_model, override_sae: used in place of what ``cfg`` names.

    Raises:
        ValueError: width or checkpoint do not fit; the message names both sides.
    """

    def __init__(
        self,
        cfg: SyntheticRunnerConfig[Any],
        override_synthetic_model: SyntheticModel | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ) -> None:
        require_one_process("runner: synthetic")
        cfg = copy.deepcopy(cfg)
        self.cfg: Any = cfg
        model = override_synthetic_model or SyntheticModel.load_from_source(cfg.synthetic_model, device=cfg.device)
        cfg.sae = with_width(cfg.sae, model.cfg.hidden_dim, "synthetic_model")
        self._host: SyntheticSAERunner[Any] = SyntheticSAERunner(cfg, model, override_sae)
        self.model: Any = model
        self.sae = self._host.sae
        self.activations_store: Any = _SyntheticStore(
            model.feature_dict, model.activation_generator, cfg.batch_size, cfg.autocast_data
        )
        self._check_resume()
        # SAELens's trainer would evaluate with wandb on alone, and not when the configuration says.
        self.evaluator: Any = None
        if cfg.eval_frequency > 0:
            evaluator = self._host._create_evaluator()
            self.evaluation = EvaluationLog(cfg.output_path, evaluator, cfg.eval_frequency, prefix="")
        self._final_eval: Any = None

    @override
    def run(self, overwrite: bool = False) -> SyntheticSAERunnerResult:  # type: ignore[override]
        """Train, measure against the true features, and save."""
        sae = super().run(overwrite)
        output = None if self.cfg.output_path is None else Path(self.cfg.output_path)
        return SyntheticSAERunnerResult(sae, self.model, self._final_eval, output)

    @override
    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> TrainingSAE[Any]:
        """Train and measure; called by ``run()`` after a checkpoint, if any, is loaded."""
        cfg = self.cfg
        sae = super().run_trainer_with_interruption_handling(trainer)
        if cfg.eval_samples > 0 and cfg.run_final_eval:
            self._final_eval = eval_sae_on_synthetic_data(
                sae,
                self.model.feature_dict,
                self.model.activation_generator,
                num_samples=cfg.eval_samples,
                batch_size=cfg.batch_size,
            )
            if cfg.logger.log_to_wandb:
                wandb.log(self._final_eval.to_log_dict(prefix="final/"))
        return sae

    @override
    def _write_final(self, sae: TrainingSAE[Any], folder: str, log_feature_sparsity: torch.Tensor | None) -> None:
        self._host._save_outputs(Path(folder), sae, log_feature_sparsity, self._final_eval)

    @override
    def _set_sae_metadata(self) -> None:
        """Nothing: there is no hook, and SAELens records nothing either."""


class _SyntheticStore(SyntheticActivationIterator):
    """SAELens's stream of synthetic activations; its position is the state of torch's random generators."""

    def save_to_checkpoint(self, checkpoint_path: Path | str) -> None:
        """Write the random states of the CPU and of the data's device."""
        save_tensors(self._random_states(), Path(checkpoint_path) / _STATE_FILENAME)

    def load_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        """Put back what ``save_to_checkpoint`` wrote."""
        states = read_tensors(Path(checkpoint_path) / _STATE_FILENAME)[0]
        torch.set_rng_state(states["cpu"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self._device)

    @property
    def _device(self) -> torch.device:
        return self.feature_dict.feature_vectors.device

    def _random_states(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return states
