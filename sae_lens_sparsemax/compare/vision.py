"""Activations of a vision model as the source of a comparison: captured once, then read from disk."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import SAE
from sae_lens.util import str_to_dtype

from sae_lens_sparsemax.activations.compare_cache import ActivationShards, capture_activations
from sae_lens_sparsemax.activations.vision_store import ModelActivations
from sae_lens_sparsemax.compare.config import IMAGE_SET, CompareConfig, fingerprint
from sae_lens_sparsemax.compare.image_settings import ImageData
from sae_lens_sparsemax.compare.sources import VALIDATION, Metrics
from sae_lens_sparsemax.data.image_loader import ImageLoader
from sae_lens_sparsemax.data.images import load_image_dataset
from sae_lens_sparsemax.evaluation.eval_images import load_evaluator
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction
from sae_lens_sparsemax.evaluation.vision_evaluator import VisionEvaluator
from sae_lens_sparsemax.files import file_facts, save_json
from sae_lens_sparsemax.models.loading import load_vision_model
from sae_lens_sparsemax.models.metadata import model_metadata
from sae_lens_sparsemax.models.tokens import hook_width


class VisionSource:
    """An `ActivationSource` that shows every image to a vision model once."""

    def __init__(self, cfg: CompareConfig) -> None:
        assert cfg.images is not None and cfg.model_name is not None and cfg.hook_name is not None
        self.cfg, self.settings = cfg, cfg.images
        self.model = load_vision_model(cfg.model_name, cfg.device, **self.settings.model_from_pretrained_kwargs)
        self.hook_name = self.model.resolve_hook_name(cfg.hook_name)
        stored = ("training", "evaluation", "tokens", "image_column", "batch_size", "model_from_pretrained_kwargs")
        settings = {
            "model_name": cfg.model_name,
            "hook_name": self.hook_name,
            "held_out_fraction": cfg.held_out_fraction,
            "activation_dtype": cfg.activation_dtype,
            "images": {key: value for key, value in asdict(self.settings).items() if key in stored},
            "n_tokens": [cfg.n_stored_tokens, cfg.n_validation_tokens, cfg.n_evaluation_tokens],
            "files": file_facts([cfg.model_name, self.settings.training.path, self.settings.evaluation.path]),
        }
        self.fingerprint = fingerprint(settings)
        classified = ("label_column", "class_names", "templates", "n_zero_shot_images")
        self.chosen_fingerprint = fingerprint({key: getattr(self.settings, key) for key in classified})
        self.metadata = {
            "model_name": cfg.model_name,
            "model_class_name": "HookedViT",
            "model_from_pretrained_kwargs": self.settings.model_from_pretrained_kwargs,
            "hook_name": self.hook_name,
            "tokens": self.settings.tokens,
            **model_metadata(self.model),
        }
        self.d_in = hook_width(self.hook_name, self.model)
        self.folder = Path(cfg.output_path) / "activations" / self.fingerprint
        save_json(settings, self.folder / "settings.json")
        self.train = self._capture("train", cfg.n_stored_tokens)
        self.validation = self._capture(VALIDATION, cfg.n_validation_tokens)
        self.evaluation = self._capture(IMAGE_SET, cfg.n_evaluation_tokens)

    def batches(self, seed: int) -> Iterator[torch.Tensor]:
        """Training batches; every epoch is a permutation of all tokens fixed by the seed."""
        return self.train.shuffled(self.cfg.batch_size, seed)

    def mean(self) -> torch.Tensor:
        """Mean of all stored training activations, shape (d_in,)."""
        return self.train.mean()

    def evaluate(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Reconstruction and sparsity on held-out images."""
        return {
            name: asdict(evaluate_reconstruction(sae, shards.in_order(self.cfg.batch_size), progress=False))
            for name, shards in ((VALIDATION, self.validation), (IMAGE_SET, self.evaluation))
        }

    def evaluate_chosen(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Zero-shot classification of the evaluation images with the reconstruction of their tokens in place."""
        if self.settings.n_zero_shot_images == 0 or not self.model.classifies:
            return {}
        measured = self._evaluator(sae)
        return {IMAGE_SET: {k: v for k, v in measured.items() if k.startswith(("zero_shot", "contrastive"))}}

    @cached_property
    def _evaluator(self) -> VisionEvaluator:
        settings = self.settings
        return load_evaluator(
            self.model,
            _images(settings.evaluation, settings.image_column),
            self.hook_name,
            settings.tokens,
            n_images=settings.n_zero_shot_images,
            image_column=settings.image_column,
            label_column=settings.label_column,
            class_names=settings.class_names,
            templates=settings.templates,
            batch_size=settings.batch_size,
        )

    def _capture(self, name: str, n_tokens: int) -> ActivationShards:
        return capture_activations(
            partial(self._activations, name),
            self.folder / name.replace(" ", "_"),
            n_tokens,
            self.d_in,
            str_to_dtype(self.cfg.activation_dtype),
            f"Activations, {name}",
        )

    def _activations(self, name: str, n_skipped: int) -> Iterator[torch.Tensor]:
        """One pass over the images of a part, in an order that is random and the same every time."""
        data, settings = self._part(name), self.settings
        images = ImageLoader(
            data,
            self.model.image_processor,
            settings.batch_size,
            image_column=settings.image_column,
            n_workers=settings.n_decode_workers,
            seed=None,
        )
        source = ModelActivations(self.model, images, self.hook_name, settings.tokens)
        drawn = n_skipped * settings.batch_size
        for batch in source.batches({"drawn": drawn}):
            # The loader goes on with the first images again; those of a last, incomplete batch are cut off.
            n_images = min(batch.n_images, len(data) - drawn - batch.n_bad_images)
            if n_images > 0:
                yield batch.acts.unflatten(0, (batch.n_images, -1))[:n_images].flatten(0, 1)
            drawn = batch.position["drawn"]
            if drawn >= len(data):
                return

    def _part(self, name: str) -> Dataset:
        column = self.settings.image_column
        if name == IMAGE_SET:
            data = _images(self.settings.evaluation, column)
            return data.select(_order(len(data)))
        data = _images(self.settings.training, column)
        order = _order(len(data))
        n_validation = max(1, round(self.cfg.held_out_fraction * len(data)))
        return data.select(order[:n_validation] if name == VALIDATION else order[n_validation:])


def _images(data: ImageData, image_column: str) -> Dataset:
    dataset = load_image_dataset(data.path, split=data.split, config=data.config, image_column=image_column)
    assert isinstance(dataset, Dataset)
    return dataset


def _order(n: int) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
