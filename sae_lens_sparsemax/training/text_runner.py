"""Training an SAE on a language model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens import logger as sae_lens_logger
from sae_lens.config import HfDataset, LanguageModelSAERunnerConfig
from sae_lens.saes.sae import TrainingSAE
from transformer_lens.hook_points import HookedRootModule
from typing_extensions import override

from sae_lens_sparsemax.activations.store import MixedActivationsStore, ResumableActivationsStore
from sae_lens_sparsemax.data.texts import require_one_context
from sae_lens_sparsemax.evaluation.harness import TextEvaluator
from sae_lens_sparsemax.models.language_models import hook_width, require_positions, resolve_hook_name
from sae_lens_sparsemax.training.config import with_width
from sae_lens_sparsemax.training.mesh import tokens_per_rank
from sae_lens_sparsemax.training.ranks import own_rows
from sae_lens_sparsemax.training.ranks_runner import across_ranks
from sae_lens_sparsemax.training.runner import TrainingRunner, pretrained_sae
from sae_lens_sparsemax.training.sources import (
    cached_source,
    language_model,
    reads_cache,
    require_sources,
    text_dataset,
)


class TextTrainingRunner(TrainingRunner):
    """Trains on a language model; models and data are those of ``models.language_models`` and ``data.texts``.

    Args:
        cfg: SAELens's config or ``TextRunnerConfig``; left as it is.
        override_dataset, override_model, override_sae: used in place of what ``cfg`` names.

    Raises:
        ValueError: model, hook, width, data or checkpoint do not fit; the message names both sides.
    """

    @across_ranks
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
        if from_cache and override_dataset is not None:
            raise ValueError("Cached activations are read instead of text: give a data set or a cache, not both.")
        require_sources(cfg, without_data=override_dataset is not None, from_cache=from_cache)
        sae = override_sae or pretrained_sae(cfg, self.ranks)
        torch.manual_seed(cfg.seed)
        model: Any = override_model if override_model is not None else language_model(cfg)
        cfg.hook_name = resolve_hook_name(model, cfg.hook_name)
        require_positions(model, cfg.context_size)
        cfg.sae = with_width(cfg.sae, hook_width(model, cfg.hook_name, cfg.hook_head_index), cfg.hook_name)
        dataset = override_dataset if override_dataset is not None else text_dataset(cfg)
        whole, dataset = dataset, own_rows(dataset, self.ranks)
        source = cached_source(cfg, model, self.ranks) if from_cache else None
        with _without_override_warnings():
            super().__init__(cfg, dataset, model, sae)
        store: Any = ResumableActivationsStore.from_config(self.model, cfg, dataset)
        store.is_prefetching = bool(cfg.prefetch_llm_batches)
        store.train_batch_size_tokens = tokens_per_rank(cfg)
        if store.cached_activation_dataset is not None:
            store.cached_activation_dataset = own_rows(store.cached_activation_dataset, self.ranks)
        require_one_context(store, cfg.dataset_path)
        self.activations_store: Any = store
        batch_size = cfg.eval_batch_size_prompts or cfg.store_batch_size_prompts
        self.evaluator: Any = TextEvaluator(
            self.model,
            store.dataset if self.ranks is None else whole,  # all ranks measure what one process would
            store.context_size,
            batch_size,
            cfg.n_eval_batches,
        )
        if source is not None:
            self.activations_store = MixedActivationsStore(
                source,
                tokens_per_rank(cfg),
                cfg.n_batches_in_buffer * store.training_context_size,
                cfg.activations_mixing_fraction,
                prefetch,
            )
        self._check_resume()

    @override
    def _set_sae_metadata(self) -> None:
        super()._set_sae_metadata()
        for key in ("dataset_split", "dataset_config", "text_column", "held_out_fraction"):
            if hasattr(self.cfg, key):
                self.sae.cfg.metadata[key] = getattr(self.cfg, key)


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
