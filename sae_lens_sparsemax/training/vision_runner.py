"""Training an SAE on a vision model: images in place of text."""

import copy
import logging
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_sparsemax.activations.store import MixedActivationsStore
from sae_lens_sparsemax.data.images import (
    ImageDataset,
    encoded_images,
    image_column_of,
    label_column_of,
    load_image_dataset,
    split_of,
)
from sae_lens_sparsemax.data.labelled_images import ImageData, load_images
from sae_lens_sparsemax.data.loading import refuse_missing_data
from sae_lens_sparsemax.evaluation.vision_evaluator import load_evaluator
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook, model_metadata
from sae_lens_sparsemax.processes.together import gathered
from sae_lens_sparsemax.training.config import with_width
from sae_lens_sparsemax.training.log import EvaluationLog
from sae_lens_sparsemax.training.mesh import tokens_per_rank
from sae_lens_sparsemax.training.ranks import share
from sae_lens_sparsemax.training.ranks_runner import across_ranks
from sae_lens_sparsemax.training.runner import TrainingRunner, pretrained_sae
from sae_lens_sparsemax.training.sources import image_source, require_sources, vision_model
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig

logger = logging.getLogger(__name__)


class VisionSAETrainingRunner(TrainingRunner):
    """Trains on a vision model, and evaluates on held-out images meanwhile.

    Args:
        cfg: what to do; left as it is.
        override_model, override_dataset, override_eval_dataset, override_sae: used in place of what `cfg` names.

    Raises:
        ValueError: model, hook, width, images or checkpoint do not fit; the message names both sides.
    """

    @across_ranks
    def __init__(
        self,
        cfg: VisionSAERunnerConfig[Any],
        override_model: HookedViT | None = None,
        override_dataset: ImageDataset | None = None,
        override_eval_dataset: ImageDataset | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ) -> None:
        cfg = copy.deepcopy(cfg)
        self.cfg: Any = cfg
        from_cache = cfg.cached_activations_path is not None
        require_sources(cfg, without_data=from_cache or override_dataset is not None, from_cache=from_cache)
        refuse_missing_data(cfg.eval_dataset_path if override_eval_dataset is None else None)
        sae = override_sae or pretrained_sae(cfg, self.ranks)
        torch.manual_seed(cfg.seed)
        self.model: Any = override_model or vision_model(cfg)
        cfg.hook_name = self.model.resolve_hook_name(cfg.hook_name)
        _check_heads(cfg)
        cfg.sae = with_width(cfg.sae, VisionAtHook(self.model, cfg.hook_name, cfg.tokens).width, cfg.hook_name)
        eval_image_column = cfg.image_column  # None finds that of the evaluation data, which may be another
        self.activations_store: Any = MixedActivationsStore(
            image_source(cfg, self.model, override_dataset, self.ranks),
            tokens_per_rank(cfg),
            cfg.n_batches_in_buffer * tokens_per_rank(cfg),
            cfg.activations_mixing_fraction,
            cfg.prefetch_image_batches,
        )
        self.sae = sae or TrainingSAE.from_dict(cfg.sae.to_dict())
        self.sae.to(cfg.device)
        self._check_resume()
        # SAELens's trainer would evaluate with wandb on alone.
        self.evaluator: Any = None
        self.evaluation = self._evaluation(override_eval_dataset, eval_image_column)

    @override
    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> TrainingSAE[Any]:
        """Train; called by `run()` after a checkpoint, if any, is loaded."""
        store = self.activations_store
        try:
            return super().run_trainer_with_interruption_handling(trainer)
        finally:
            logger.info("Trained on %d tokens of %d images.", trainer.n_training_samples, store.n_inputs)
            if store.n_bad_inputs:
                logger.warning(
                    "%d images could not be used. The first: %s", store.n_bad_inputs, store.source.first_errors[:1]
                )

    @override
    def _more_to_log(self) -> dict[str, Any]:
        store = self.activations_store
        return {"details/n_training_images": store.n_inputs, "details/n_bad_images": store.n_bad_inputs}

    @override
    def _set_sae_metadata(self) -> None:
        """Record all that is needed to use the SAE: model, hook, tokens and preprocessing."""
        cfg, metadata = self.cfg, self.sae.cfg.metadata
        for name in (
            "model_name", "model_class_name", "model_from_pretrained_kwargs", "hook_name", "tokens",
            "dataset_path", "dataset_config", "dataset_split", "image_column",
        ):  # fmt: skip
            metadata[name] = getattr(cfg, name)
        for name, value in model_metadata(self.model).items():
            metadata[name] = value

    def _evaluation(self, dataset: ImageDataset | None, image_column: str | None) -> EvaluationLog | None:
        cfg = self.cfg
        if dataset is None and cfg.eval_dataset_path is None:
            return None
        path = cfg.eval_dataset_path or "eval_dataset"
        split = cfg.eval_dataset_split
        if dataset is None:
            is_same = (path, cfg.eval_dataset_config) == (cfg.dataset_path, cfg.dataset_config)
            split = split or split_of(
                path, cfg.eval_dataset_config, ["test", "validation"], cfg.dataset_split if is_same else None
            )
            if split is None:
                logger.warning(
                    "Nothing is evaluated: %r has only the split %r; give eval_dataset_path.", path, cfg.dataset_split
                )
                return None
            dataset = load_image_dataset(path, split=split, config=cfg.eval_dataset_config, image_column=image_column)
        labels = cfg.eval_label_column or label_column_of(dataset, path) or ("label" if cfg.eval_class_names else None)
        if labels is None and self.model.classifies:
            logger.warning("Zero-shot accuracy is not measured: %r has no column of named classes.", path)
        data = ImageData(
            path,
            split or "given",
            cfg.eval_dataset_config,
            image_column=image_column or image_column_of(encoded_images(dataset, None, path), path),
            label_column=labels or "",
            max_bad_image_fraction=cfg.max_bad_image_fraction,
        )
        evaluator = load_evaluator(
            VisionAtHook(self.model, cfg.hook_name, cfg.tokens),
            load_images(data, cfg.eval_n_images, self.model.image_processor, cfg.store_batch_size_images, dataset),
            [] if labels is None else cfg.eval_class_names,
            cfg.eval_templates,
            part=share(self.ranks),
            gather=gathered,
        )
        return EvaluationLog(cfg.output_path, evaluator, cfg.eval_every_n_steps)


def _check_heads(cfg: VisionSAERunnerConfig[Any]) -> None:
    wanted = "hook_z" if cfg.hook_name.endswith("attn.hook_z") else "none"
    if cfg.sae.reshape_activations != wanted:
        raise ValueError(f"'sae.reshape_activations' must be {wanted!r} for the hook {cfg.hook_name!r}.")
