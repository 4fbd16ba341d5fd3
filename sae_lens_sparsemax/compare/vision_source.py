"""Activations of a vision model as the source of a comparison: captured once, then read from disk."""

from dataclasses import asdict
from functools import cached_property
from typing import Any

from datasets import Dataset
from sae_lens import SAE

from sae_lens_sparsemax.activations.cache_writer import Batches
from sae_lens_sparsemax.activations.sources import ImageActivations
from sae_lens_sparsemax.compare.config import IMAGE_SET, CompareConfig, EvalDataset
from sae_lens_sparsemax.compare.identity import fingerprint
from sae_lens_sparsemax.compare.sources import VALIDATION, CapturedActivations, Metrics
from sae_lens_sparsemax.data.image_loader import ImageLoader
from sae_lens_sparsemax.data.images import load_image_dataset
from sae_lens_sparsemax.data.labelled_images import ImageData, load_images
from sae_lens_sparsemax.data.order import permutation
from sae_lens_sparsemax.evaluation.vision_evaluator import VisionEvaluator, load_evaluator
from sae_lens_sparsemax.files import file_facts
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook, model_metadata

_CACHED_IMAGE_SETTINGS = ("tokens", "image_column", "batch_size", "model_from_pretrained_kwargs")


class VisionSource(CapturedActivations):
    """Shows every image to a vision model once."""

    unit = "images"

    def __init__(self, cfg: CompareConfig) -> None:
        assert cfg.images is not None and cfg.model_name is not None and cfg.hook_name is not None
        self.images = cfg.images
        self.model = HookedViT.from_pretrained(cfg.model_name, cfg.device, **self.images.model_from_pretrained_kwargs)
        self.at_hook = VisionAtHook(self.model, cfg.hook_name, self.images.tokens)
        self.hook_name = self.at_hook.hook_name
        settings = {
            "model_name": cfg.model_name,
            "hook_name": self.hook_name,
            "held_out_fraction": cfg.held_out_fraction,
            "activation_dtype": cfg.activation_dtype,
            # Data by their names in version 0.1, whose captures are found by these settings.
            "images": {name: asdict(self.images)[name] for name in _CACHED_IMAGE_SETTINGS}
            | {"training": _identity(cfg.training_dataset), "evaluation": _identity(cfg.evaluation_images)},
            "files": file_facts([cfg.model_name, cfg.dataset_path, cfg.evaluation_images.path]),
        }
        super().__init__(cfg, settings)
        classified = ("label_column", "class_names", "templates", "n_zero_shot_images")
        self.chosen_fingerprint = fingerprint({key: getattr(self.images, key) for key in classified})
        self.metadata = {
            "model_name": cfg.model_name,
            "model_class_name": "HookedViT",
            "model_from_pretrained_kwargs": self.images.model_from_pretrained_kwargs,
            "hook_name": self.hook_name,
            "tokens": self.images.tokens,
            "image_column": self.images.image_column,
            **{key: getattr(cfg, key) for key in ("dataset_path", "dataset_split", "dataset_config")},
            **model_metadata(self.model),
        }
        self.capture()

    def evaluate_chosen(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Zero-shot classification of the evaluation images with the reconstruction of their tokens in place."""
        if self.images.n_zero_shot_images == 0 or not self.model.classifies:
            return {IMAGE_SET: {}}
        measured = self._evaluator(sae)
        return {IMAGE_SET: {k: v for k, v in measured.items() if k.startswith(("zero_shot", "contrastive"))}}

    @cached_property
    def _evaluator(self) -> VisionEvaluator:
        cfg, where = self.images, self.cfg.evaluation_images
        assert where.path is not None
        data = ImageData(
            where.path,
            where.split,
            where.config,
            image_column=cfg.image_column,
            label_column=cfg.label_column,
            max_bad_image_fraction=cfg.max_bad_image_fraction,
        )
        images = load_images(data, cfg.n_zero_shot_images, self.model.image_processor, cfg.batch_size)
        return load_evaluator(self.at_hook, images, cfg.class_names, cfg.templates)

    @property
    def width(self) -> int:
        """Width of the activations at the hook, heads side by side."""
        return self.at_hook.width

    @property
    def batch(self) -> tuple[int, int]:
        """Images that the model sees at once, and tokens of each."""
        return self.images.batch_size, self.at_hook.n_tokens

    def stream(self, name: str) -> Batches:
        """The images of a set, in an order that is random and the same every time."""
        data, rows = self._part(name)
        images = ImageLoader(
            data,
            self.model.image_processor,
            self.images.batch_size,
            image_column=self.images.image_column,
            n_workers=self.images.n_decode_workers,
            seed=None,
            rows=rows,
            max_bad_fraction=self.images.max_bad_image_fraction,
        )
        source = ImageActivations(self.at_hook, images)
        return lambda position, wanted: source.batches(position, one_pass=True, wanted=wanted)

    def _part(self, name: str) -> tuple[Dataset, list[int]]:
        """The images of a set, and the rows of them that belong to it, in order."""
        column = self.images.image_column
        data = _images(self.cfg.evaluation_images if name == IMAGE_SET else self.cfg.training_dataset, column)
        order = permutation(len(data)).tolist()
        if name == IMAGE_SET:
            return data, order
        n_validation = max(1, round(self.cfg.held_out_fraction * len(data)))
        return data, order[:n_validation] if name == VALIDATION else order[n_validation:]


def _identity(data: EvalDataset) -> dict[str, Any]:
    return {"path": data.path, "split": data.split, "config": data.config}


def _images(data: EvalDataset, image_column: str) -> Dataset:
    assert data.path is not None
    dataset = load_image_dataset(data.path, split=data.split, config=data.config, image_column=image_column)
    assert isinstance(dataset, Dataset)
    return dataset
