"""What the vision suite measures on: given, or completed from an SAE's metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_lens import SAE

from sae_lens_sparsemax.data.image_loader import MAX_BAD_IMAGE_FRACTION
from sae_lens_sparsemax.data.labelled_images import ImageData
from sae_lens_sparsemax.evaluation.concept_counts import PATCHSAE_THRESHOLD
from sae_lens_sparsemax.evaluation.zero_shot import N_CONCEPTS
from sae_lens_sparsemax.models.vision_at_hook import Tokens
from sae_lens_sparsemax.settings.checking import build


@dataclass(frozen=True)
class VisionSuiteSettings:
    """What the vision suite measures on; None takes what the SAE's metadata say."""

    model_name: str | None = None
    """Hub id or folder of a CLIP, SigLIP, DINOv2 or ViT model."""
    hook_name: str | None = None
    """Where the SAE reads and is spliced in."""
    tokens: Tokens | None = None
    """Which tokens of an image the SAE reads."""
    dataset_path: str | None = None
    """Images to measure on, not those of the training: hub id, parquet file, or folder with a subfolder per class."""
    dataset_split: str = "train"
    """Split of the data set; local files form the split train."""
    dataset_config: str | None = None
    """Configuration of the data set, where it has several."""
    image_column: str = "image"
    """Column with the images."""
    label_column: str = "label"
    """Column with the class of each image, as a whole number."""
    streaming: bool = False
    """Read only the first images, as they come, rather than download everything."""
    max_bad_image_fraction: float = MAX_BAD_IMAGE_FRACTION
    """Share of the images that may be broken, beyond the first ten."""
    counting_dataset: ImageData | None = None
    """Images to count the concepts of each class on; by default half of the data set, which then is not tested on."""
    n_images: int = 2_000
    """Images to measure on."""
    n_counting_images: int = 2_000
    """Images to count on."""
    encoder: str | None = None
    """Independent encoder for monosemanticity: hub id or folder of a vision model, or `pixels`."""
    classes: str | None = None
    """Data set whose class names and templates are used, such as `imagenet`; by default the data set's own names."""
    class_names: list[str] | None = None
    """Names in the order of the labels, where neither the data set nor `classes` give them."""
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}"])
    """Prompts with `{}` where a class name goes; `classes` brings its own."""
    n_concepts: list[int] = field(default_factory=lambda: list(N_CONCEPTS))
    """Numbers of concepts per class to keep or remove; all concepts are always measured too."""
    controls: bool = True
    """Whether random and frequency-matched concepts are measured too, for three times the time."""
    threshold: float = PATCHSAE_THRESHOLD
    """Activation above which a concept is counted."""
    threshold_quantile: float | None = None
    """Take the threshold as this quantile of the SAE's non-zero activations."""
    min_plain_accuracy: float | None = None
    """Least accuracy of the plain model; by default twice chance."""
    seed: int = 0
    """Of the split into halves and of the controls."""
    batch_size: int = 32
    """Images at a time."""
    device: str = "cpu"
    """Where model and SAE run."""

    @property
    def dataset(self) -> ImageData:
        """The images to measure on."""
        assert self.dataset_path is not None
        shared = ("image_column", "label_column", "streaming", "max_bad_image_fraction")
        return ImageData(
            path=self.dataset_path,
            split=self.dataset_split,
            config=self.dataset_config,
            **{name: getattr(self, name) for name in shared},
        )


def vision_settings(values: Mapping[str, Any], sae: SAE[Any]) -> VisionSuiteSettings:
    """
    The settings of a run on one SAE, completed from its metadata.

    Raises:
        ValueError: A key or value is wrong, or something is missing in both.
    """
    given = build(VisionSuiteSettings, values)
    meta = sae.cfg.metadata
    settings = dataclasses.replace(
        given,
        model_name=given.model_name or meta.model_name,
        hook_name=given.hook_name or meta.hook_name,
        tokens=given.tokens or meta.tokens or "all",
    )
    for key in ("model_name", "hook_name"):
        if not getattr(settings, key):
            raise ValueError(f"The SAE's metadata have no {key!r}; give --{key}.")
    if settings.dataset_path is None:
        raise ValueError("dataset_path must be given: images that the SAE was not trained on")
    return settings


def trained_on(settings: VisionSuiteSettings, sae: SAE[Any]) -> bool:
    """Whether the images to measure on are those that the SAE's metadata name as its training data."""
    meta = sae.cfg.metadata
    return (settings.dataset_path, settings.dataset_split) == (meta.dataset_path, meta.dataset_split or "train")
