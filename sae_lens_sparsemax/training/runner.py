"""What every training run shares: SAELens's runner with a log, exact resume and safe saves, whatever the activations.

What is SAELens's stays SAELens's: making the trainer, its loop, loading a checkpoint, wandb.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sae_lens.config import LoggingConfig
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_sparsemax.activations.store import MixedActivationsStore
from sae_lens_sparsemax.files import added_files, reason, write_checksums
from sae_lens_sparsemax.models.saved_saes import load_training_sae
from sae_lens_sparsemax.models.shards import is_of_ranks
from sae_lens_sparsemax.processes.failures import one_failure_ends_all
from sae_lens_sparsemax.training.checkpoints import check_checkpoint, differing, output_of_run
from sae_lens_sparsemax.training.estimate import require_room_for_final_sae
from sae_lens_sparsemax.training.log import EvaluationLog, TrainingLog
from sae_lens_sparsemax.training.mesh import parallel_of
from sae_lens_sparsemax.training.ranks import Ranks
from sae_lens_sparsemax.training.ranks_checkpoints import load_checkpoint_of_ranks
from sae_lens_sparsemax.training.ranks_trainer import adapt_to_ranks
from sae_lens_sparsemax.training.trainer import adapt

logger = logging.getLogger(__name__)

# What a training changes, or where it runs: no choice that a loaded SAE would contradict.
_OF_A_STATE = {"sae.gate_scale", "sae.metadata", "sae.device"}


class TrainingRunner(LanguageModelSAETrainingRunner):
    """``run()`` trains an SAE of any registered architecture, saves it and returns it.

    In ``output_path``: the inference SAE, ``metrics.jsonl``, pictures, the configuration, and where something is
    evaluated ``evaluation.jsonl``. On the CPU, checkpoints continue to the bit, after SIGINT and SIGTERM (which save
    one) as after SIGKILL.

    A subclass whose constructor is decorated with ``across_ranks`` runs on several processes too.

    A subclass sets ``cfg``, ``model``, ``sae``, ``activations_store`` and ``evaluator`` when it is made (SAELens's
    constructor does so for language models), then calls ``_check_resume``.
    """

    evaluation: EvaluationLog | None = None
    """What is measured while training, with wandb or without."""
    ranks: Ranks | None = None
    """This process among those that share the run; None in one process."""
    _checkpoint_of_ranks: str | None = None

    @override
    def run(self, overwrite: bool = False) -> TrainingSAE[Any]:
        """Train, save and return the SAE.

        Args:
            overwrite: replace the SAE and the checkpoints of an earlier run, which are refused otherwise.

        Returns:
            The SAE; of several ranks, the first one has it whole, on the CPU, and the others their part of it.

        Raises:
            ValueError: there are such, or another process is writing there.
        """
        if type(self.cfg.logger) is LoggingConfig:  # a user's own logs as it likes
            self.cfg.logger = _Copying(**vars(self.cfg.logger))
        saves = self.cfg.checkpoint_path is not None
        anew = "with --resume" if saves else "anew, and with a checkpoint_path next time"
        with output_of_run(self.cfg, overwrite=overwrite), one_failure_ends_all(anew):
            checkpoint = self.cfg.resume_from_checkpoint
            if checkpoint is not None and (is_of_ranks(checkpoint) or self.ranks is not None):
                # SAELens reads those of one process; this one is read as soon as there is a trainer.
                self._checkpoint_of_ranks, self.cfg.resume_from_checkpoint = checkpoint, None
            return super().run()

    @override
    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> TrainingSAE[Any]:
        """Train; called by ``run()`` after a checkpoint, if any, is loaded."""
        cfg, ranks = self.cfg, self.ranks
        log = None
        if cfg.output_path is not None:
            log = TrainingLog(cfg.output_path, cfg.logger.wandb_log_frequency)
        if self._checkpoint_of_ranks is not None:
            load_checkpoint_of_ranks(trainer, self.activations_store, Path(self._checkpoint_of_ranks), ranks)
        settings: dict[str, Any] = {
            "log": log,
            "evaluation": self.evaluation,
            "more_to_log": self._more_to_log,
            "resumed": (cfg.resume_from_checkpoint or self._checkpoint_of_ranks) is not None,
        }
        if ranks is None:
            trainer = adapt(trainer, **settings)
        else:
            async_checkpoints = parallel_of(cfg).async_checkpoints
            trainer = adapt_to_ranks(trainer, ranks, **settings, async_checkpoints=async_checkpoints)
        try:
            with trainer.stopping_on_signals():
                sae: Any = trainer.fit()
            return sae if ranks is None else sae.assembled()
        except Exception as error:
            if ranks is not None and not isinstance(error, InterruptedException):
                log = None  # torchrun ends all ranks in a moment: first of all, the error must be said
            raise
        finally:
            if isinstance(self.activations_store, MixedActivationsStore):
                self.activations_store.close()
            if log is not None:
                log.close()

    @override
    def save_final_sae(
        self,
        sae: TrainingSAE[Any],
        output_path: str,
        log_feature_sparsity: torch.Tensor | None = None,
    ) -> None:
        """Save the inference SAE; an earlier save is replaced only once all new files are written."""
        if self.ranks is not None and not self.ranks.is_first:
            return
        with added_files(output_path) as new:
            self._write_final(sae, str(new), log_feature_sparsity)
            write_checksums(new)

    def _write_final(self, sae: TrainingSAE[Any], folder: str, log_feature_sparsity: torch.Tensor | None) -> None:
        super().save_final_sae(sae, folder, log_feature_sparsity)

    def _more_to_log(self) -> dict[str, Any]:
        """What the log holds beside SAELens's numbers."""
        return {}

    def _check_resume(self) -> None:
        """Refuse a checkpoint of another run, and an SAE that is too large in the end, before any work is done."""
        if self.ranks is not None and self.ranks.is_first:
            require_room_for_final_sae(self.cfg)
        if self.cfg.resume_from_checkpoint is not None and (self.ranks is None or self.ranks.is_first):
            check_checkpoint(self.cfg.resume_from_checkpoint, self.sae, self.cfg)


class _Copying(LoggingConfig):
    """SAELens's, which gives wandb copies of SAEs while they are saved: one that wandb does not take is saved still."""

    # wandb's rules for a name, to whose end SAELens puts more for the second file.
    _NO_LETTERS = re.compile(r"[^A-Za-z0-9_.-]+")
    _LONGEST_NAME = 128 - len("_log_feature_sparsity")

    @override
    def log(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        # The name has that of the model, which may be a path.
        name = self._NO_LETTERS.sub("_", trainer.sae.get_name().replace("/", "__"))[-self._LONGEST_NAME :]
        named = SimpleNamespace(cfg=trainer.cfg, sae=SimpleNamespace(get_name=lambda: name))
        try:
            super().log(named, *args, **kwargs)
        except Exception as error:
            logger.warning("wandb has no copy of this SAE: %s", reason(error))


def pretrained_sae(cfg: Any, ranks: Ranks | None) -> TrainingSAE[Any] | None:
    """The SAE of ``from_pretrained_path``, of several ranks this one's part; None where none is given.

    Args:
        cfg: a run's configuration; where its SAE leaves the width to the hook, that of the one read is put down.

    Raises:
        ValueError: it cannot be read, or ``sae`` says something else of it than is so.
    """
    if cfg.from_pretrained_path is None:
        return None
    sae: Any = load_training_sae(cfg.from_pretrained_path, cfg.device if ranks is None else "cpu")
    if cfg.sae.d_in == 0:
        cfg.sae = replace(cfg.sae, d_in=sae.cfg.d_in)
    own, asked = ({f"sae.{name}": value for name, value in each.to_dict().items()} for each in (sae.cfg, cfg.sae))
    if others := differing(own, asked, _OF_A_STATE):
        where = f"(as in the SAE of from_pretrained_path, {cfg.from_pretrained_path!r})"
        raise ValueError(f"{'; '.join(others)} {where}")
    if ranks is not None and hasattr(sae, "divide"):  # others are refused
        sae.divide(ranks.mesh)
    return sae  # type: ignore[no-any-return]
