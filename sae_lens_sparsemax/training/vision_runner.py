"""Training an SAE on a vision model: the text runner with images in place of text.

The loop, the checkpoints, the resuming, the log and the saving are those of `TrainingRunner` and of SAELens under it.
"""

import copy
import dataclasses
import logging
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from typing_extensions import override

from sae_lens_sparsemax.activations.store import MixedActivationsStore
from sae_lens_sparsemax.data.images import ImageDataset, encoded_images, load_image_dataset
from sae_lens_sparsemax.evaluation.vision_evaluator import VisionEvaluator, load_evaluator
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.language_models import check_width
from sae_lens_sparsemax.models.vision_at_hook import hook_width, model_metadata
from sae_lens_sparsemax.training.checkpoints import check_checkpoint
from sae_lens_sparsemax.training.eval_log import EvaluationLog
from sae_lens_sparsemax.training.sources import image_source, vision_model
from sae_lens_sparsemax.training.text_runner import TrainingRunner
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig

logger = logging.getLogger(__name__)


class VisionSAETrainingRunner(TrainingRunner):
    """Trains an SAE of any registered architecture on a vision model; `run()` trains, saves and returns it.

    In the output folder: the inference SAE, `metrics.jsonl`, `evaluation.jsonl`, pictures and the configuration.
    Checkpoints continue bit-identically on the CPU, after SIGINT and SIGTERM (which save one) as after SIGKILL.

    Args:
        cfg: what to do; left as it is.
        override_model, override_dataset, override_eval_dataset, override_sae: used in place of what `cfg` names.

    Raises:
        ValueError: model, hook, width, images or checkpoint do not fit; the message names both sides.
    """

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
        torch.manual_seed(cfg.seed)
        self.model: Any = override_model or vision_model(cfg)
        cfg.hook_name = self.model.resolve_hook_name(cfg.hook_name)
        _check_heads(cfg)
        width = check_width(cfg.sae.d_in, hook_width(cfg.hook_name, self.model), cfg.hook_name)
        cfg.sae = dataclasses.replace(cfg.sae, d_in=width)
        self.activations_store: Any = MixedActivationsStore(
            image_source(cfg, self.model, override_dataset),
            cfg.train_batch_size_tokens,
            cfg.n_batches_in_buffer * cfg.train_batch_size_tokens,
            cfg.activations_mixing_fraction,
            cfg.prefetch_image_batches,
        )
        self.sae = self._new_sae() if override_sae is None else override_sae
        self.sae.to(cfg.device)
        if cfg.resume_from_checkpoint is not None:
            check_checkpoint(cfg.resume_from_checkpoint, self.sae)
        # SAELens's trainer would evaluate with wandb on alone; see `EvaluationLog`.
        self.evaluator: Any = None
        self.vision_evaluator = self._evaluator(override_eval_dataset)

    @override
    def run_trainer_with_interruption_handling(self, trainer: SAETrainer[Any, Any]) -> Any:
        """Train; called by `run()` after a checkpoint, if any, is loaded."""
        self._log_images(trainer)
        if self.vision_evaluator is not None:
            EvaluationLog(self.cfg.output_path, self.vision_evaluator, self.cfg.eval_every_n_steps).attach(trainer)
        try:
            return super().run_trainer_with_interruption_handling(trainer)
        finally:
            store = self.activations_store
            logger.info("Trained on %d tokens of %d images.", trainer.n_training_samples, store.n_inputs)
            if store.n_bad_inputs:
                logger.warning(
                    "%d images could not be used. The first: %s", store.n_bad_inputs, store.source.first_errors[:1]
                )

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

    def _new_sae(self) -> TrainingSAE[Any]:
        if self.cfg.from_pretrained_path is not None:
            return TrainingSAE.load_from_disk(self.cfg.from_pretrained_path, self.cfg.device)
        return TrainingSAE.from_dict(self.cfg.sae.to_dict())

    def _evaluator(self, dataset: ImageDataset | None) -> VisionEvaluator | None:
        cfg = self.cfg
        if dataset is None and cfg.eval_dataset_path is None:
            return None
        if dataset is None:
            dataset = load_image_dataset(
                cfg.eval_dataset_path,
                split=cfg.eval_dataset_split,
                config=cfg.eval_dataset_config,
                image_column=cfg.image_column,
            )
        else:
            dataset = encoded_images(dataset, cfg.image_column, "for evaluation")
        return load_evaluator(
            self.model,
            dataset,
            cfg.hook_name,
            cfg.tokens,
            n_images=cfg.eval_n_images,
            image_column=cfg.image_column,
            label_column=cfg.eval_label_column,
            class_names=cfg.eval_class_names,
            templates=cfg.eval_templates,
            batch_size=cfg.store_batch_size_images,
            max_bad_fraction=cfg.max_bad_image_fraction,
        )

    def _log_images(self, trainer: SAETrainer[Any, Any]) -> None:
        """Add the images seen, and those left out, to what the trainer logs."""
        build = trainer.build_train_step_log_dict

        def build_with_images(output: Any, n_training_samples: int) -> dict[str, Any]:
            store = self.activations_store
            counts = {"details/n_training_images": store.n_inputs, "details/n_bad_images": store.n_bad_inputs}
            return build(output, n_training_samples) | counts

        trainer.build_train_step_log_dict = build_with_images


def _check_heads(cfg: VisionSAERunnerConfig[Any]) -> None:
    wanted = "hook_z" if cfg.hook_name.endswith("attn.hook_z") else "none"
    if cfg.sae.reshape_activations != wanted:
        raise ValueError(f"'sae.reshape_activations' must be {wanted!r} for the hook {cfg.hook_name!r}.")
