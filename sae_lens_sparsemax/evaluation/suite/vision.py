"""The vision suite: reconstruction and geometry, sparsity, monosemanticity, zero-shot classification, names.

Tables 5 and 6 of the sparsemax paper, and the protocol of Figure 3 and of Tables 3, 4 and 7 to 17.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, Literal

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.class_names import class_prompts
from sae_lens_sparsemax.data.labelled_images import ImageData, LabelledImages, load_images
from sae_lens_sparsemax.evaluation.classification import disjoint_splits, text_prototypes
from sae_lens_sparsemax.evaluation.concept_counts import activation_quantile
from sae_lens_sparsemax.evaluation.geometry import GeometryMetrics, evaluate_geometry
from sae_lens_sparsemax.evaluation.monosemanticity import MonosemanticityMetrics, evaluate_monosemanticity
from sae_lens_sparsemax.evaluation.name_agreement import NameAgreement, evaluate_names
from sae_lens_sparsemax.evaluation.naming import decoder_directions, embed_words
from sae_lens_sparsemax.evaluation.settings import PIXELS, VisionSuiteSettings
from sae_lens_sparsemax.evaluation.sparsity import (
    L0AgainstComplexity,
    L0Distribution,
    l0_against_complexity,
    l0_of_images,
)
from sae_lens_sparsemax.evaluation.suite.groups import MetricGroup, NotMeasured
from sae_lens_sparsemax.evaluation.zero_shot import ZeroShotResult, evaluate_zero_shot
from sae_lens_sparsemax.files import file_facts
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook, open_vision
from sae_lens_sparsemax.settings.sentences import listed, must_be

# Samples compared with each other in CKNNA; fewer where there are not so many.
_CKNNA_BATCH = 512

_PIXELS_SIDE = 32

# Settings that change the result of each group, besides the model and the images.
_OWN_SETTINGS: dict[str, tuple[str, ...]] = {
    "tokens": (),
    "images": (),
    "sparsity": (),
    "monosemanticity": ("encoder",),
    "zero_shot": (
        "counting_data", "n_counting_images", "classes", "class_names", "templates", "n_concepts", "controls",
        "threshold", "threshold_quantile", "min_plain_accuracy", "seed",
    ),
    "names": ("classes", "class_names", "templates"),
}  # fmt: skip


def vision_groups(sae: SAE[Any], settings: VisionSuiteSettings, progress: bool = True) -> list[MetricGroup]:
    """The groups `tokens`, `images`, `sparsity`, `monosemanticity`, `zero_shot` and `names`.

    Model and images are loaded when the first group that is not finished asks for them.
    """
    assert settings.model_name and settings.dataset_path
    metrics = VisionMetrics(sae, settings, progress)
    # What a group was measured on goes by the names of version 0.1, so that what was finished then is kept.
    on = {"model": settings.model_name} | {key: getattr(settings, key) for key in ("hook_name", "tokens", "n_images")}
    paths = [settings.model_name, settings.dataset_path, settings.encoder]
    paths.append(settings.counting_dataset.path if settings.counting_dataset else None)
    on |= {"data": _measured_on(settings.dataset), "files": file_facts(paths)}
    plain = asdict(settings) | {"counting_data": _measured_on(settings.counting_dataset)}
    compute = {
        "tokens": partial(metrics.geometry, "token"),
        "images": partial(metrics.geometry, "image"),
        "sparsity": metrics.sparsity,
        "monosemanticity": metrics.monosemanticity,
        "zero_shot": metrics.zero_shot,
        "names": metrics.names,
    }
    return [
        MetricGroup(
            name, on | {key: plain[key] for key in keys}, compute[name], lambda: (metrics.model, metrics.images)
        )
        for name, keys in _OWN_SETTINGS.items()
    ]


def vision_results() -> dict[str, dict[str, Any]]:
    """What the result of each group of the vision suite holds, by name: dataclasses and numbers, as types."""
    return {
        "tokens": {"geometry": GeometryMetrics},
        "images": {"geometry": GeometryMetrics},
        "sparsity": {
            "per_token": L0Distribution, "per_image": L0Distribution, "against_complexity": L0AgainstComplexity,
        },
        "monosemanticity": {"encoder": str, "monosemanticity": MonosemanticityMetrics},
        "zero_shot": {"n_counting_images": int, "n_unlabelled_images": int, "zero_shot": ZeroShotResult},
        "names": {"names": NameAgreement},
    }  # fmt: skip


def _measured_on(data: ImageData | None) -> dict[str, Any] | None:
    """What of a set of images changes results: how many may be broken does not."""
    return data and {key: value for key, value in asdict(data).items() if key != "max_bad_image_fraction"}


class VisionMetrics:
    """The measures of the vision suite; the model and the images are loaded when they are first needed.

    Args:
        sae: Any SAELens SAE.
        settings: Complete, from `vision_settings`.
        progress: Whether to show progress bars.
    """

    def __init__(self, sae: SAE[Any], settings: VisionSuiteSettings, progress: bool = True) -> None:
        self.sae, self.settings, self.progress = sae, settings, progress

    @cached_property
    def model(self) -> VisionAtHook:
        """The SAE's model at its hook."""
        settings = self.settings
        return open_vision(
            self.sae, settings.model_name, hook_name=settings.hook_name, tokens=settings.tokens, device=settings.device
        )

    @cached_property
    def images(self) -> LabelledImages:
        """The images to measure on."""
        return self._load(self.settings.dataset, self.settings.n_images)

    def geometry(self, level: Literal["token", "image"]) -> dict[str, Any]:
        """Reconstruction, CKNNA and decoder orthogonality, over tokens or over images."""
        batches = self._activations(f"Geometry, {level}s")
        measured = evaluate_geometry(self.sae, batches, level=level, cknna_batch_size=_CKNNA_BATCH)
        return {"geometry": measured}

    def sparsity(self) -> dict[str, Any]:
        """L0 of tokens, of images (concepts active on any token), and against the complexity of the image."""
        l0 = l0_of_images(self.sae, self._activations("L0"))
        found: dict[str, Any] = {"per_token": l0.per_token, "per_image": l0.per_image}
        if len(l0.means) > 1:
            found["against_complexity"] = l0_against_complexity(l0.means, self.images.complexities())
        return found

    def monosemanticity(self) -> dict[str, Any]:
        """Do the images of a concept look alike to an encoder that is not the SAE's model?"""
        encoder = self.settings.encoder
        if encoder is None:
            raise NotMeasured("no independent encoder was named; give --encoder, a vision model or 'pixels'")
        batches = zip(
            self._activations("Monosemanticity"),
            encoder_embeddings(encoder, self.images, self.settings.device),
            strict=True,
        )
        measured = evaluate_monosemanticity(self.sae, batches)
        return {"encoder": encoder, "monosemanticity": measured}

    def zero_shot(self) -> dict[str, Any]:
        """Classification with the top n concepts of each class on or off."""
        settings, model = self.settings, self.model
        if not model.model.classifies:
            raise NotMeasured("the model has no text tower to classify with")
        counting, test = self._splits()
        names, templates = self._prompts(test)
        prototypes = text_prototypes(model.model.encode_text, names, templates, progress=self.progress)
        threshold = settings.threshold
        if settings.threshold_quantile is not None:
            threshold = activation_quantile(self.sae, model, counting, settings.threshold_quantile)
        measured = evaluate_zero_shot(
            self.sae,
            model,
            counting,
            test,
            prototypes,
            n_concepts=settings.n_concepts,
            concepts=settings.concepts,
            threshold=threshold,
            min_plain_accuracy=settings.min_plain_accuracy,
            seed=settings.seed,
            progress=self.progress,
        )
        n_unlabelled = self.images.n_images - self._labelled.n_images
        return {"n_counting_images": counting.n_images, "n_unlabelled_images": n_unlabelled, "zero_shot": measured}

    def names(self) -> dict[str, Any]:
        """How often the names that are guessed for concepts fit other images."""
        model = self.model.model
        if model.tokenizer is None:
            raise NotMeasured("the model has no text tower to name concepts with")
        names, templates = self._prompts(self._labelled)
        try:
            decoder = decoder_directions(model, self.sae)
        except ValueError:  # SAEs of other hooks have no decoder that reads as image embeddings
            decoder = None
        measured = evaluate_names(self.sae, self._named_images(), names, embed_words(model, names, templates), decoder)
        return {"names": measured}

    def _activations(self, description: str) -> Iterator[torch.Tensor]:
        """Activations of all images, batch by batch."""
        for pixels in self.images.pixels(description if self.progress else None):
            yield self.model.activations(pixels)

    def _named_images(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for pixels, labels in tqdm(self._labelled, desc="Names", disable=not self.progress, leave=False):
            yield *self.model.activations_and_embeddings(pixels), labels

    @cached_property
    def _labelled(self) -> LabelledImages:
        """The images to measure on that have a label."""
        return _labelled(self.images)

    def _splits(self) -> tuple[LabelledImages, LabelledImages]:
        """Images to count on and images to test on, none in both."""
        settings = self.settings
        if settings.counting_dataset is not None:
            counting_images = _labelled(self._load(settings.counting_dataset, settings.n_counting_images))
            counted, tested = counting_images.class_labels(), self._labelled.class_labels()
            if counted and tested and counted != tested:  # a number would mean two classes
                condition = f"images of the classes to measure on in the same order, {listed(tested)}"
                raise must_be("counting_dataset", condition, counted)
            return counting_images, self._labelled
        counting, test = disjoint_splits(self._labelled.labels, seed=settings.seed)
        return self._labelled.select(counting[: settings.n_counting_images]), self._labelled.select(test)

    def _prompts(self, images: LabelledImages) -> tuple[list[str], list[str]]:
        settings, labels = self.settings, images.class_labels()
        if settings.classes is not None:
            prompts = class_prompts(settings.classes, labels)
            return list(prompts.names), list(prompts.templates)
        if settings.class_names is not None:
            if labels is not None and len(labels) != len(settings.class_names):
                raise ValueError(f"'class_names' has {len(settings.class_names)} names for {len(labels)} classes.")
            return settings.class_names, settings.templates
        if labels is None:
            raise NotMeasured("the data do not name their classes; give --classes or --class_names")
        return [label.replace("_", " ") for label in labels], settings.templates

    def _load(self, data: ImageData, n_images: int) -> LabelledImages:
        return load_images(data, n_images, self.model.model.image_processor, self.settings.batch_size)


def _labelled(images: LabelledImages) -> LabelledImages:
    labelled = images.labelled()
    if not labelled.n_images:
        raise NotMeasured(f"no image of {images.name} has a label in {images.label_column!r}")
    return labelled


def encoder_embeddings(encoder: str, images: LabelledImages, device: str) -> Iterator[torch.Tensor]:
    """Embeddings of images by an encoder other than the SAE's model, batch by batch, shape (images, d_embedding).

    Args:
        encoder: Hub id or folder of a vision model, or `PIXELS`.
        images: Prepared for any model; they are prepared again for the encoder.
        device: Where the encoder runs.
    """
    if encoder == PIXELS:
        for pixels in images.pixels():
            small = torch.nn.functional.adaptive_avg_pool2d(pixels.double(), min(_PIXELS_SIDE, pixels.shape[-1]))
            flat = small.flatten(1)
            yield flat - flat.mean(1, keepdim=True)
        return
    model = HookedViT.from_pretrained(encoder, device)
    for pixels in images.seen_by(model.image_processor).pixels():
        with torch.no_grad():
            embeddings = model(pixels)
        assert embeddings is not None
        yield embeddings
