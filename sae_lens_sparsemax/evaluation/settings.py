"""What an SAE is measured on: given, or completed from its metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sae_lens import SAE

from sae_lens_sparsemax.data.class_names import check_dataset
from sae_lens_sparsemax.data.labelled_images import ImageData, ImageReading
from sae_lens_sparsemax.data.labelled_texts import LabelledText
from sae_lens_sparsemax.data.loading import data_identity, name_to_load, refuse_missing_data
from sae_lens_sparsemax.data.texts import TextData
from sae_lens_sparsemax.evaluation.classification import check_templates
from sae_lens_sparsemax.evaluation.concept_counts import PATCHSAE_THRESHOLD
from sae_lens_sparsemax.evaluation.probing import KS, Pooling
from sae_lens_sparsemax.evaluation.zero_shot import CONCEPTS, N_CONCEPTS, Concepts
from sae_lens_sparsemax.models.vision_at_hook import Tokens
from sae_lens_sparsemax.settings.checking import build
from sae_lens_sparsemax.settings.sentences import must_be
from sae_lens_sparsemax.settings.values import check_file_name, check_held_out_fraction, check_share

# What stands where neither the settings nor the metadata say.
_DEFAULTS = {
    "model_class_name": "HookedTransformer",
    "dataset_split": "train",
    "text_column": "text",
    "image_column": "image",
    "tokens": "all",
}


@dataclass(frozen=True)
class ModelSettings:
    """The model that an SAE reads; None takes what the SAE's metadata say."""

    model_name: str | None = None
    """Model name or local folder."""
    device: str = "cpu"
    """Where model and SAE run: cpu, cuda or mps."""


@dataclass(frozen=True)
class LanguageModelSettings(ModelSettings):
    """A language model and the contexts that it reads."""

    model_class_name: str | None = None
    """HookedTransformer, HookedMamba, AutoModelForCausalLM or TransformerBridge."""
    context_size: int | None = None
    """Tokens per context."""
    batch_size: int = 16
    """Contexts at a time."""


@dataclass(frozen=True)
class DatasetSettings:
    """One data set; None takes what the SAE's metadata say."""

    dataset_path: str | None = None
    """Hub id, local file or folder; without one the training's: name a held-out one for figures to report."""
    dataset_split: str | None = None
    """Split of the data set; local files form the split train."""
    dataset_config: str | None = None
    """Configuration of the data set, where it has several."""


@dataclass(frozen=True)
class ImageSettings(DatasetSettings, ImageReading):
    """One set of images."""

    @property
    def dataset(self) -> ImageData:
        """The images to measure on."""
        assert self.dataset_path is not None
        reading = {each.name: getattr(self, each.name) for each in dataclasses.fields(ImageReading)}
        return ImageData(self.dataset_path, self.dataset_split or "train", self.dataset_config, **reading)


@dataclass(frozen=True)
class ContextSettings(LanguageModelSettings, DatasetSettings):
    """A language model and one data set for it."""

    text_column: str | None = None
    """Column with the text."""


@dataclass(frozen=True)
class EvaluationSettings(ContextSettings):
    """What SAELens's harness measures on."""

    batches: int = 10
    """Batches for each group of metrics."""


@dataclass(frozen=True)
class TextSuiteSettings(LanguageModelSettings):
    """What the text suite measures on; None takes what the SAE's metadata say."""

    hook_name: str | None = None
    """Where the SAE reads and is spliced in."""
    datasets: dict[str, TextData] = field(default_factory=dict)
    """Sets of text by name; by default the held-out part of the training data."""
    held_out_fraction: float | None = None
    """Share of the documents that `held_out: true` takes: that of the training."""
    n_tokens: int = 100_000
    """Tokens of each set for reconstruction and sparsity."""
    n_prediction_tokens: int = 20_000
    """Tokens of each set for cross-entropy and KL divergence, which run the model six times."""
    max_norm: float | None = None
    """Leave out activations of a larger norm; by default those that the SAE's training left out."""
    probing: dict[str, LabelledText] = field(default_factory=dict)
    """Sets of text with classes by name, to be told apart by a few concepts, beside what `datasets` give by
    themselves: of which of them a passage is, and whether what follows holds a digit, a question or a quotation."""
    probing_ks: list[int] = field(default_factory=lambda: list(KS))
    """Numbers of concepts of the probes."""
    probing_pooling: Pooling = "last"
    """What stands for a text: its last token (`last`) or the average over its tokens (`mean`)."""
    n_probing_texts: int = 1_500
    """Texts of each set with classes: the first ones."""

    def __post_init__(self) -> None:
        check_held_out_fraction(self.held_out_fraction)
        for group in ("datasets", "probing"):
            for name in getattr(self, group):
                check_file_name(f"a name in {group}", name)


@dataclass(frozen=True)
class VisionSuiteSettings(ModelSettings, ImageSettings):
    """What the vision suite measures on; None takes what the SAE's metadata say."""

    model_name: str | None = None
    """Hub id or folder of a CLIP, SigLIP, DINOv2 or ViT model."""
    hook_name: str | None = None
    """Where the SAE reads and is spliced in."""
    tokens: Tokens | None = None
    """Which tokens of an image the SAE reads."""
    dataset_path: str | None = None
    """Images to measure on, not those of the training: hub id, parquet file, or folder with a subfolder per class."""
    dataset_split: str | None = "train"
    """Split of the data set; local files form the split train."""
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

    def __post_init__(self) -> None:
        check_templates("templates", self.templates)
        check_share("threshold_quantile", self.threshold_quantile)
        check_share("min_plain_accuracy", self.min_plain_accuracy)

    @property
    def concepts(self) -> tuple[Concepts, ...]:
        """Which concepts are kept or removed: the top ones of a class, and the controls."""
        return CONCEPTS if self.controls else ("top",)


PIXELS = "pixels"
"""As `encoder`, needs no model: the image's own pixels, at most 32 × 32, with their mean removed."""

S = TypeVar("S", bound=ModelSettings)


def completed(settings: S, sae: SAE[Any], names: Iterable[str], required: Iterable[str]) -> S:
    """Settings in which what is not given is what the SAE's metadata say.

    Another data set has its own splits and columns, so those of the training data say nothing of it.

    Args:
        settings: as given.
        sae: any SAELens SAE.
        names: fields to complete.
        required: those of them that must be known then.

    Raises:
        ValueError: neither the settings nor the metadata give one that is required.
    """
    meta, other_data = sae.cfg.metadata, bool(getattr(settings, "dataset_path", None))
    found = {}
    for name in names:
        is_of_data = name.startswith("dataset_") or name.endswith("_column")
        trained_with = None if is_of_data and other_data else meta.get(name)
        found[name] = getattr(settings, name) or trained_with or _DEFAULTS.get(name)
    for name in required:
        if not found[name]:
            raise ValueError(f"The SAE's metadata have no {name!r}; give --{name}.")
    return dataclasses.replace(settings, **found)


def require_inputs(settings: TextSuiteSettings | VisionSuiteSettings) -> None:
    """See that the data and the encoder that a suite's settings name are there, before anything is loaded.

    Raises:
        ValueError: one can only be local, and is missing.
    """
    if isinstance(settings, TextSuiteSettings):
        refuse_missing_data(*(each.path for each in (*settings.datasets.values(), *settings.probing.values())))
        return
    refuse_missing_data(settings.dataset_path, settings.counting_dataset and settings.counting_dataset.path)
    if settings.encoder not in (None, PIXELS):
        name_to_load(settings.encoder, "encoder")


def text_settings(values: Mapping[str, Any], sae: SAE[Any]) -> TextSuiteSettings:
    """The settings of a run on one SAE, completed from its metadata.

    Raises:
        ValueError: A key or value is wrong, or the metadata lack something that was not given either.
    """
    given = build(TextSuiteSettings, values)
    datasets, meta = given.datasets, sae.cfg.metadata
    fraction = given.held_out_fraction if given.held_out_fraction is not None else meta.held_out_fraction
    if not datasets:
        if not fraction or not meta.dataset_path:
            raise ValueError(
                "The SAE's metadata name no text that was held out of training; give --datasets.NAME.path FILE, or "
                "train with 'held_out_fraction'."
            )
        split, config, column = meta.dataset_split or "train", meta.dataset_config, meta.text_column or "text"
        datasets = {"held_out": TextData(meta.dataset_path, split, config, column, held_out=True)}
    if both := sorted(datasets.keys() & given.probing.keys()):
        raise must_be("probing", "sets of text of other names than those of datasets", both[0])
    if any(each.held_out for each in datasets.values()) and not fraction:
        raise ValueError(
            "'held_out' needs the fraction that training left out, which the SAE's metadata do not have; give "
            "--held_out_fraction, or a data set that was not trained on."
        )
    given = dataclasses.replace(given, held_out_fraction=fraction or 0.0, datasets=datasets)
    require_inputs(given)
    return completed(
        given,
        sae,
        ("model_name", "model_class_name", "hook_name", "context_size", "max_norm"),
        required=("model_name", "hook_name", "context_size"),
    )


def vision_settings(values: Mapping[str, Any], sae: SAE[Any]) -> VisionSuiteSettings:
    """The settings of a run on one SAE, completed from its metadata.

    Raises:
        ValueError: A key or value is wrong, or something is missing in both.
    """
    given, required = build(VisionSuiteSettings, values), ("model_name", "hook_name")
    settings = completed(given, sae, (*required, "tokens"), required)
    if settings.dataset_path is None:
        raise ValueError("dataset_path must be given: images that the SAE was not trained on")
    require_inputs(settings)
    if settings.classes is not None:
        check_dataset(settings.classes)
    if settings.counting_dataset is not None and _identity(settings.counting_dataset) == _identity(settings.dataset):
        raise ValueError(
            "counting_dataset must be other images than those to measure on, which are halved without it, got the same"
        )
    return settings


def trained_on(settings: TextSuiteSettings | VisionSuiteSettings, sae: SAE[Any]) -> bool:
    """Whether a set to measure on is all of what the SAE's metadata name as its training data."""
    meta = sae.cfg.metadata
    if isinstance(settings, VisionSuiteSettings):
        sets: list[TextData | ImageData] = [settings.dataset]
    else:
        sets = [each for each in settings.datasets.values() if not each.held_out]
    return data_identity(meta.dataset_path, meta.dataset_split, meta.dataset_config) in map(_identity, sets)


def _identity(data: TextData | ImageData) -> tuple[str, str, str | None]:
    return data_identity(data.path, data.split, data.config)
