"""Training an SAE on a language model: SAELens's runner with a log, exact resume and safe saves.

What is SAELens's stays SAELens's: the training loop, the evaluation during training, wandb.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens import logger as sae_lens_logger
from sae_lens.config import HfDataset, LanguageModelSAERunnerConfig
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from transformer_lens.hook_points import HookedRootModule
from typing_extensions import override

from sae_lens_sparsemax.activations.store import MixedActivationsStore, ResumableActivationsStore
from sae_lens_sparsemax.data.texts import require_one_context
from sae_lens_sparsemax.models.language_models import check_width, hook_width, resolve_hook_name
from sae_lens_sparsemax.training.checkpoints import (
    check_checkpoint,
    continue_after_checkpoint,
    make_checkpoints_atomic,
)
from sae_lens_sparsemax.training.log import TrainingLog
from sae_lens_sparsemax.training.sources import cached_source, language_model, reads_cache, text_dataset
from sae_lens_sparsemax.training.stopping import stop_between_steps

logger = logging.getLogger(__name__)


class TrainingRunner(LanguageModelSAETrainingRunner):
    """``LanguageModelSAETrainingRunner`` for any registered architecture; ``run()`` trains and saves.

    In addition: models and data as in ``models.py`` and ``text_data.py``; ``sae.d_in`` read from the hook
    when it is 0; the seed is used; ``metrics.jsonl`` and pictures in ``output_path``; checkpoints that
    continue bit-identically on the CPU; SIGINT and SIGTERM save a checkpoint; fused Adam.

    Args:
        cfg: SAELens's config or ``TextRunnerConfig``; left as it is.
        override_dataset, override_model, override_sae: used in place of what ``cfg`` names.

    Raises:
        ValueError: model, hook, width, data or checkpoint do not fit; the message names both sides.
    """

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[Any],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ) -> None:
        cfg = copy.copy(cfg)
        prefetch = int(cfg.prefetch_llm_batches)
        if from_cache := reads_cache(cfg):
            # Read by a store of ours, which reads ahead by itself and can be resumed all the same.
            cfg.use_cached_activations = cfg.prefetch_llm_batches = False
        if cfg.resume_from_checkpoint is not None and cfg.prefetch_llm_batches:
            # The host starts the thread that reads ahead before it restores the position in the data.
            raise ValueError("A run cannot be resumed with 'prefetch_llm_batches'; set it to false.")
        torch.manual_seed(cfg.seed)
        model: Any = override_model if override_model is not None else language_model(cfg)
        cfg.hook_name = resolve_hook_name(model, cfg.hook_name)
        width = check_width(cfg.sae.d_in, hook_width(model, cfg.hook_name, cfg.hook_head_index), cfg.hook_name)
        cfg.sae = dataclasses.replace(cfg.sae, d_in=width)
        if from_cache and override_dataset is not None:
            raise ValueError("Cached activations are read instead of text: give a data set or a cache, not both.")
        dataset = override_dataset if override_dataset is not None else text_dataset(cfg)
        source = cached_source(cfg, model) if from_cache else None
        with _without_override_warnings():
            super().__init__(cfg, dataset, model, override_sae)
        store: Any = ResumableActivationsStore.from_config(self.model, cfg, dataset)
        store.is_prefetching = bool(cfg.prefetch_llm_batches)
        require_one_context(store, cfg.dataset_path)
        self.activations_store: Any = store
        self.evaluator.activations_store = store
        if source is not None:
            # SAELens's evaluation still takes its contexts from the text.
            self.activations_store = MixedActivationsStore(
                source,
                cfg.train_batch_size_tokens,
                cfg.n_batches_in_buffer * store.training_context_size,
                cfg.activations_mixing_fraction,
                prefetch,
            )
        if cfg.resume_from_checkpoint is not None:
            check_checkpoint(cfg.resume_from_checkpoint, self.sae)

    @override
    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> Any:
        """Train; called by ``run()`` after a checkpoint, if any, is loaded."""
        use_fused_adam(trainer.optimizer)
        if self.cfg.resume_from_checkpoint is not None:
            continue_after_checkpoint(trainer)
        make_checkpoints_atomic(trainer)
        log = None
        if self.cfg.output_path is not None:
            log = TrainingLog(self.cfg.output_path, self.cfg.logger.wandb_log_frequency)
            log.attach(trainer)

        def save() -> None:
            if self.cfg.checkpoint_path is None:
                logger.warning("'checkpoint_path' is null: the interrupted run is not saved.")
            else:
                trainer.save_checkpoint(str(trainer.n_training_samples))

        try:
            with stop_between_steps(trainer, save):
                return trainer.fit()
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
        final = Path(output_path)
        final.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final, prefix=".new-") as new:
            super().save_final_sae(sae, new, log_feature_sparsity)
            for file in sorted(Path(new).iterdir()):
                file.replace(final / file.name)

    @override
    def _set_sae_metadata(self) -> None:
        super()._set_sae_metadata()
        for key in ("dataset_split", "dataset_config", "text_column", "held_out_fraction"):
            if hasattr(self.cfg, key):
                self.sae.cfg.metadata[key] = getattr(self.cfg, key)


def use_fused_adam(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam update each tensor in one pass, where torch can: floating point tensors on CPU or CUDA."""
    for group in optimizer.param_groups:
        if all(p.is_floating_point() and p.device.type in {"cpu", "cuda"} for p in group["params"]):
            group["fused"], group["foreach"] = True, False


@contextmanager
def _without_override_warnings() -> Iterator[None]:
    """The host warns that a model or data set passed in is not in the configuration; here it is."""

    def keep(record: logging.LogRecord) -> bool:
        return "You just passed in a" not in record.getMessage()

    sae_lens_logger.addFilter(keep)
    try:
        yield
    finally:
        sae_lens_logger.removeFilter(keep)
