"""Measuring one SAE on images: each method is one metric group of the vision suite."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.class_names import class_prompts
from sae_lens_sparsemax.data.labelled_images import ImageData, LabelledImages, load_images
from sae_lens_sparsemax.evaluation.classification import disjoint_splits, text_prototypes
from sae_lens_sparsemax.evaluation.concept_counts import activation_quantile
from sae_lens_sparsemax.evaluation.geometry import N_NEIGHBOURS, evaluate_geometry
from sae_lens_sparsemax.evaluation.monosemanticity import evaluate_monosemanticity
from sae_lens_sparsemax.evaluation.name_agreement import evaluate_names
from sae_lens_sparsemax.evaluation.naming import decoder_directions, embed_words
from sae_lens_sparsemax.evaluation.pooling import mean_over_tokens
from sae_lens_sparsemax.evaluation.sparsity import l0_against_complexity, l0_distribution
from sae_lens_sparsemax.evaluation.streaming import CountDistribution
from sae_lens_sparsemax.evaluation.suite.groups import NotMeasured
from sae_lens_sparsemax.evaluation.suite.vision_model import VisionModel, encoder_embeddings
from sae_lens_sparsemax.evaluation.suite.vision_settings import VisionSuiteSettings
from sae_lens_sparsemax.evaluation.zero_shot import CONCEPTS, evaluate_zero_shot
from sae_lens_sparsemax.models.encoding import CHUNK_SIZE, encode_chunks

# Samples compared with each other in CKNNA; fewer where there are not so many.
_CKNNA_BATCH = 512


class VisionMetrics:
    """
    The measures of the vision suite; the model and the images are loaded when they are first needed.

    Args:
        sae: Any SAELens SAE.
        settings: Complete, from `vision_settings`.
        progress: Whether to show progress bars.
    """

    def __init__(self, sae: SAE[Any], settings: VisionSuiteSettings, progress: bool = True) -> None:
        self.sae, self.settings, self.progress = sae, settings, progress

    @cached_property
    def model(self) -> VisionModel:
        """The SAE's model."""
        settings = self.settings
        assert settings.model and settings.hook_name and settings.tokens
        return VisionModel(self.sae, settings.model, settings.hook_name, settings.tokens, settings.device)

    @cached_property
    def images(self) -> LabelledImages:
        """The images to measure on."""
        assert self.settings.data is not None
        return self._load(self.settings.data, self.settings.n_images)

    def geometry(self, level: Literal["token", "image"]) -> dict[str, Any]:
        """Reconstruction, CKNNA and decoder orthogonality, over tokens or over images."""
        n_samples = self.images.n_images if level == "image" else _CKNNA_BATCH
        batches = self.model.activation_batches(self.images, f"Geometry, {level}s" if self.progress else None)
        batch_size = min(_CKNNA_BATCH, max(n_samples, N_NEIGHBOURS + 1))
        measured = evaluate_geometry(self.sae, batches, level=level, cknna_batch_size=batch_size, progress=False)
        return {"geometry": measured}

    def sparsity(self) -> dict[str, Any]:
        """L0 of tokens, of images (concepts active on any token), and against the complexity of the image."""
        per_token, per_image = CountDistribution(), CountDistribution()
        means: list[torch.Tensor] = []
        for acts in self.model.activation_batches(self.images, "L0" if self.progress else None):
            n_tokens = acts.shape[1]
            for images in acts.split(max(1, CHUNK_SIZE // n_tokens)):
                (chunk,) = encode_chunks(self.sae, [images], chunk_size=len(images) * n_tokens)
                l0 = chunk.acts.l0().cpu()
                per_token.add(l0)
                per_image.add(mean_over_tokens(chunk.acts, n_tokens).l0())
                means.append(l0.double().unflatten(0, (-1, n_tokens)).mean(1))
        found: dict[str, Any] = {"per_token": l0_distribution(per_token), "per_image": l0_distribution(per_image)}
        if self.images.n_images > 1:
            found["against_complexity"] = l0_against_complexity(torch.cat(means), self.images.complexities())
        return found

    def monosemanticity(self) -> dict[str, Any]:
        """Do the images of a concept look alike to an encoder that is not the SAE's model?"""
        encoder = self.settings.encoder
        if encoder is None:
            raise NotMeasured("no independent encoder was named; give --encoder, a vision model or 'pixels'")
        batches = zip(
            self.model.activation_batches(self.images, "Monosemanticity" if self.progress else None),
            encoder_embeddings(encoder, self.images, self.settings.device),
            strict=True,
        )
        measured = evaluate_monosemanticity(self.sae, batches, progress=False)
        return {"encoder": encoder, "monosemanticity": measured}

    def zero_shot(self) -> dict[str, Any]:
        """Classification with the top n concepts of each class on or off."""
        settings, model = self.settings, self.model
        if model.model.tokenizer is None or not hasattr(model.model.model, "logit_scale"):
            raise NotMeasured("the model has no text tower to classify with")
        self._require_labels()
        counting, test = self._splits()
        names, templates = self._prompts(test)
        prototypes = text_prototypes(model.model.encode_text, names, templates, progress=self.progress)
        embed, threshold = model.embed(), settings.threshold
        if settings.threshold_quantile is not None:
            threshold = activation_quantile(self.sae, embed, counting, settings.threshold_quantile)
        measured = evaluate_zero_shot(
            self.sae,
            embed,
            counting,
            test,
            prototypes,
            n_concepts=settings.n_concepts,
            concepts=CONCEPTS if settings.controls else ("top",),
            threshold=threshold,
            min_plain_accuracy=settings.min_plain_accuracy,
            seed=settings.seed,
            progress=self.progress,
        )
        return {"n_counting_images": counting.n_images, "zero_shot": measured}

    def names(self) -> dict[str, Any]:
        """How often the names that are guessed for concepts fit other images."""
        model = self.model.model
        if model.tokenizer is None:
            raise NotMeasured("the model has no text tower to name concepts with")
        self._require_labels()
        names, templates = self._prompts(self.images)
        try:
            decoder = decoder_directions(model, self.sae)
        except ValueError:  # SAEs of other hooks have no decoder that reads as image embeddings
            decoder = None
        measured = evaluate_names(self.sae, self._named_images(), names, embed_words(model, names, templates), decoder)
        return {"names": measured}

    def _named_images(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for pixels, labels in tqdm(self.images, desc="Names", disable=not self.progress, leave=False):
            yield *self.model.activations_and_embeddings(pixels), labels

    def _require_labels(self) -> None:
        if not self.images.has_labels:
            assert self.settings.data is not None
            data = self.settings.data
            raise NotMeasured(f"{data.name} has no column {data.label_column!r}; give its name")

    def _splits(self) -> tuple[LabelledImages, LabelledImages]:
        """Images to count on and images to test on, none in both."""
        settings = self.settings
        if settings.counting_data is not None:
            if settings.counting_data == settings.data:
                raise ValueError(
                    "'counting_data' and 'data' are the same images; leave 'counting_data' out to halve them."
                )
            return self._load(settings.counting_data, settings.n_counting_images), self.images
        counting, test = disjoint_splits(self.images.labels(), seed=settings.seed)
        return self.images.select(counting[: settings.n_counting_images]), self.images.select(test)

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
