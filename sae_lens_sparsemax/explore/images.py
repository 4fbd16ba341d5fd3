"""Images as samples for the explorer: in a fixed random order, through the vision model to the SAE's hook."""

import logging
from collections.abc import Iterator
from typing import Any, Literal

import torch
from datasets import ClassLabel, Dataset
from sae_lens import SAE

from sae_lens_sparsemax.activations.sources import ImageActivations
from sae_lens_sparsemax.data.image_loader import ImageLoader, decode_image
from sae_lens_sparsemax.data.images import class_names_of, first_rows, load_image_dataset
from sae_lens_sparsemax.explore.samples import SampleBatch
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.models.language_models import check_width
from sae_lens_sparsemax.models.loading import load_vision_model
from sae_lens_sparsemax.models.patch_geometry import patch_geometry
from sae_lens_sparsemax.models.tokens import Tokens, hook_width, n_tokens_per_image

logger = logging.getLogger(__name__)
DEFAULT_IMAGES = 5_000
_SEED = 0


class ImageStream:
    """Images of a data set in a fixed random order.

    Args:
        sae: An SAE trained on a vision model.
        settings: What replaces its metadata.
        n_default: Images to read unless the settings say.

    Raises:
        ValueError: The metadata lack something that the settings do not give, or model, width and data do not fit.
    """

    kind: Literal["image"] = "image"

    def __init__(self, sae: SAE[Any], settings: ExploreSettings, n_default: int = DEFAULT_IMAGES) -> None:
        meta = sae.cfg.metadata
        self.settings = settings
        self.model_name = _given("model", settings.model or meta.model_name)
        self.dataset_name = _given("dataset", settings.dataset or meta.dataset_path)
        # Another data set has its own splits and columns, so those of the training data say nothing.
        same_data = settings.dataset is None
        self.split = settings.dataset_split or (same_data and meta.dataset_split) or "train"
        self.image_column = settings.image_column or (same_data and meta.image_column) or "image"
        self.model = load_vision_model(self.model_name, settings.device, **(meta.model_from_pretrained_kwargs or {}))
        self.hook_name = self.model.resolve_hook_name(_given("hook_name", meta.hook_name))
        self.tokens: Tokens = meta.tokens or "all"
        check_width(sae.cfg.d_in, hook_width(self.hook_name, self.model), self.hook_name)
        source = load_image_dataset(
            self.dataset_name,
            split=self.split,
            config=settings.dataset_config or (meta.dataset_config if same_data else None),
            image_column=self.image_column,
            streaming=settings.streaming,
        )
        columns = [self.image_column]
        if settings.label_column in (source.column_names or []):
            columns.append(settings.label_column)
        self.data = data = first_rows(source, settings.samples or n_default, columns)
        self.n_samples = min(settings.samples or n_default, len(data))
        self.n_tokens = n_tokens_per_image(self.tokens, self.model)
        self.n_prefix_tokens = self.model.cfg.n_prefix_tokens if self.tokens == "all" else 0
        self.label_column = settings.label_column if _has_classes(data, settings.label_column) else None
        self.class_names = class_names_of(data, self.label_column) if self.label_column else []
        self.encoder = load_vision_model(settings.encoder, settings.device) if settings.encoder else None
        self.d_embedding = self._embed([decode_image(data[0][self.image_column])]).shape[-1] if self.encoder else 0
        self.rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(_SEED))[: self.n_samples]
        """Row in the data set of each sample."""
        loader = ImageLoader(data, self.model.image_processor, 1)
        self._activations = ImageActivations(self.model, loader, self.hook_name, self.tokens)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches that an SAE's tokens end with; (0, 0) if it sees the class token alone."""
        if self.tokens == "cls":
            return (0, 0)
        # What the processor makes of a picture counts, not the size the model was configured for: DINOv2's differ.
        cfg = self.model.cfg
        return patch_geometry(self.model.image_processor, (cfg.image_size, cfg.image_size), cfg.patch_size).grid

    def batches(self, start: int) -> Iterator[tuple[SampleBatch, int]]:
        """Batches from sample `start` on; images that cannot be decoded are left out with a warning."""
        for first in range(start, self.n_samples, self.settings.batch_size):
            last = min(first + self.settings.batch_size, self.n_samples)
            images, ids = [], []
            for number in range(first, last):
                try:
                    images.append(self.image(number))
                except Exception as error:  # whatever a broken file makes its decoder raise
                    logger.warning("Row %d was left out: %s", self.rows[number], error)
                    continue
                ids.append(number)
            if not images:
                continue
            labels = None
            if self.label_column is not None:
                labels = torch.tensor([self.label(number) for number in ids])
            yield (
                SampleBatch(
                    self._activations.activations_of(self.model.preprocess(images)),
                    torch.tensor(ids),
                    labels=labels,
                    embeddings=self._embed(images) if self.encoder else None,
                ),
                last,
            )

    def image(self, number: int) -> Any:
        """The image of a sample, as a PIL image in RGB."""
        return decode_image(self.data[int(self.rows[number])][self.image_column])

    def label(self, number: int) -> int:
        """The class of a sample; -1 if classes are not known."""
        return int(self.data[int(self.rows[number])][self.label_column]) if self.label_column else -1

    def describe(self) -> dict[str, Any]:
        """Model, hook and data."""
        return {
            "model": self.model_name,
            "hook": self.hook_name,
            "tokens": self.tokens,
            "dataset": self.dataset_name,
            "split": self.split,
            "streaming": self.settings.streaming,
            "encoder": self.settings.encoder,
        }

    @torch.no_grad()
    def _embed(self, images: list[Any]) -> torch.Tensor:
        assert self.encoder is not None
        embeds = self.encoder(self.encoder.preprocess(images))
        assert embeds is not None
        return embeds.float().cpu()


def _given(name: str, value: Any) -> Any:
    if not value:
        remedy = "" if name == "hook_name" else f"; give --{name}"
        raise ValueError(f"The SAE's metadata have no {name!r}{remedy}.")
    return value


def _has_classes(data: Dataset, column: str) -> bool:
    feature = data.features.get(column)
    return isinstance(feature, ClassLabel) and feature.names is not None
