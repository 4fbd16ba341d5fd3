"""What the explorer reads: images in a fixed random order or contexts of text, through the model to the SAE's hook."""

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import PIL.Image
import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.activations.cache_identity import dataset_fingerprint
from sae_lens_sparsemax.data.images import class_names_of
from sae_lens_sparsemax.data.labelled_images import load_images
from sae_lens_sparsemax.data.loading import name_to_load, refuse_missing_data
from sae_lens_sparsemax.data.order import Wanted, everything
from sae_lens_sparsemax.evaluation.harness import open_contexts
from sae_lens_sparsemax.evaluation.settings import completed
from sae_lens_sparsemax.explore.samples import SampleBatch
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.language_models import load_language_model
from sae_lens_sparsemax.models.patch_geometry import patch_geometry
from sae_lens_sparsemax.models.vision_at_hook import blank_pixels, open_vision

logger = logging.getLogger(__name__)

DEFAULT_IMAGES = 5_000
OUTLIER_FACTOR = 10.0
"""A token of text whose activation has more than so many times the median norm is an outlier of the model: on ordinary
tokens the norms of a residual stream differ by less, on the few that attention rests on by hundreds."""


class ImageStream:
    """Images of a data set in a fixed random order.

    Args:
        sae: An SAE trained on a vision model.
        settings: What replaces its metadata.

    Raises:
        ValueError: The metadata lack something that the settings do not give, or model, width and data do not fit.
    """

    kind: Literal["image"] = "image"

    def __init__(self, sae: SAE[Any], settings: ExploreSettings) -> None:
        names = ("model_name", "dataset_path", "dataset_split", "dataset_config", "image_column")
        self.settings = settings = completed(settings, sae, names, required=("model_name", "dataset_path"))
        self.dataset, self.model_name = settings.dataset, settings.model_name
        self._model_kwargs = sae.cfg.metadata.model_from_pretrained_kwargs
        refuse_missing_data(self.dataset.path, setting="dataset_path")
        if settings.encoder:
            name_to_load(settings.encoder, "encoder")
        self.at_hook = open_vision(sae, self.model_name, device=settings.device)
        self.model, self.tokens = self.at_hook.model, self.at_hook.tokens
        height, width = self.model.cfg.image_size
        # Pictures show where patches lie: a processor that cannot be followed is refused now, not when they are drawn.
        patch_geometry(self.model.image_processor, (width, height), self.model.cfg.patch_size)
        self.images = load_images(
            self.dataset, settings.samples or DEFAULT_IMAGES, self.model.image_processor, settings.batch_size
        )
        self.n_samples, self.batch_size = self.images.n_images, settings.batch_size
        self.n_tokens = self.at_hook.n_tokens
        self.n_prefix_tokens = self.model.cfg.n_prefix_tokens if self.tokens == "all" else 0
        names_classes = self.images.class_labels() is not None
        if not names_classes and settings.label_column in self.images.data.column_names:
            logger.warning(
                "The column %r of %s names no classes, so none are shown; `Dataset.class_encode_column` makes them.",
                settings.label_column,
                self.images.name,
            )
        has_classes = names_classes and self.images.labelled().n_images > 0
        self.class_names = class_names_of(self.images.data, settings.label_column) if has_classes else []
        self.encoder = HookedViT.from_pretrained(settings.encoder, settings.device) if settings.encoder else None
        self.d_embedding = self._embed(blank_pixels(self.encoder)).shape[-1] if self.encoder else 0

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches that an SAE's tokens end with; (0, 0) if it sees the class token alone."""
        if self.tokens == "cls":
            return (0, 0)
        return self.model.cfg.grid

    def batches(self, start: int, wanted: Wanted = everything) -> Iterator[tuple[SampleBatch, int]]:
        """Batches from sample `start` on; images that cannot be used are left out, see `LabelledImages`."""
        again = self.images.seen_by(self.encoder.image_processor).batches(start, wanted) if self.encoder else None
        for batch in self.images.batches(start, wanted):
            yield (
                SampleBatch(
                    self.at_hook.activations(batch.pixel_values),
                    torch.tensor(batch.numbers),
                    labels=self.images.labels[batch.numbers] if self.class_names else None,
                    embeddings=None if again is None else self._embed(next(again).pixel_values),
                ),
                batch.position["drawn"],
            )

    def image(self, number: int) -> PIL.Image.Image:
        """The image of a sample, in RGB."""
        return self.images.image(number)

    def label(self, number: int) -> int:
        """The class of a sample; -1 if it is not known."""
        return int(self.images.labels[number]) if self.class_names else -1

    def identity(self) -> dict[str, dict[str, Any]]:
        """See `SampleStream`."""
        names = (
            "model_name", "dataset_path", "dataset_split", "dataset_config", "image_column", "label_column",
            "streaming",
        )  # fmt: skip
        samples = {
            **{name: getattr(self.settings, name) for name in names},
            "tokens": self.tokens,
            "data": dataset_fingerprint(self.images.data, self.settings.image_column),
            "classes": [self.class_names, self.images.labels.tolist()] if self.class_names else None,
        }
        read = {
            "hook_name": self.at_hook.hook_name,
            "image_processor": self.model.image_processor.to_dict(),
            "model_kwargs": self._model_kwargs,
            "encoder": self.settings.encoder,
        }
        return {"samples": samples, "read": read}

    def describe(self) -> dict[str, Any]:
        """Model, hook and data, as they are shown."""
        return {
            "model": self.model_name,
            "hook": self.at_hook.hook_name,
            "tokens": self.tokens,
            "dataset": self.dataset.path,
            "split": self.dataset.split,
            "streaming": self.settings.streaming,
            "encoder": self.settings.encoder,
        }

    @torch.no_grad()
    def _embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        assert self.encoder is not None
        embeds = self.encoder(pixel_values)
        assert embeds is not None
        return embeds.float().cpu()


DEFAULT_CONTEXTS = 2_000


class TextStream:
    """Contexts of a data set in its order, documents joined as SAELens joins them in training.

    Args:
        sae: An SAE trained on a language model.
        settings: What replaces its metadata.
        load: What loads the model; see `load_each_once`.

    Raises:
        ValueError: The metadata lack something that the settings do not give, or model, width and data do not fit.
    """

    kind: Literal["text"] = "text"

    def __init__(
        self, sae: SAE[Any], settings: ExploreSettings, load: Callable[..., Any] = load_language_model
    ) -> None:
        self.at_hook, self.store, self.on = open_contexts(sae, settings, max_norm=settings.max_norm, load=load)
        self.settings, self.model = settings, self.at_hook.model
        self.n_samples, self.batch_size = settings.samples or DEFAULT_CONTEXTS, settings.batch_size
        self.n_tokens = len(range(self.on["context_size"])[self.at_hook.seqpos])
        self.class_names: list[str] = []
        self.d_embedding = 0
        self.max_norm_is_found = not math.isfinite(self.at_hook.max_norm) and settings.max_norm is None
        """Whether the limit is `OUTLIER_FACTOR` times the median norm, over the first batch of contexts."""
        self._first: torch.Tensor | None = None  # the activations of that batch, until they are asked for
        if self.max_norm_is_found:
            tokens = torch.stack(list(self._contexts(0, settings.batch_size)))
            self._first = self.at_hook.activations(tokens)
            norms = self._first.norm(dim=-1).cpu()[self.at_hook.is_read(tokens).cpu()]
            if len(norms):
                limit = OUTLIER_FACTOR * norms.float().median().item()
                self.at_hook = dataclasses.replace(self.at_hook, max_norm=limit)

    def batches(self, start: int, wanted: Wanted = everything) -> Iterator[tuple[SampleBatch, int]]:
        """Batches from context `start` on, until there are enough or the text ends."""
        contexts = self._contexts(start, self.n_samples)
        first = start
        while group := list(itertools.islice(contexts, self.settings.batch_size)):
            last = first + len(group)
            if not wanted(first):
                first = last
                continue
            tokens = torch.stack(group)
            known, self._first = self._first if first == 0 else None, None
            acts = self.at_hook.activations(tokens) if known is None else known[: len(group)]
            keep = self.at_hook.is_read(tokens, acts).cpu()
            outliers = tokens.cpu()[self.at_hook.is_read(tokens).cpu() & ~keep]
            seqpos = self.at_hook.seqpos
            yield SampleBatch(acts[:, seqpos], torch.arange(first, last), keep=keep[:, seqpos], outliers=outliers), last
            first = last

    def _contexts(self, start: int, end: int) -> Iterator[torch.Tensor]:
        return itertools.islice(self.store._iterate_tokenized_sequences(), start, end)

    def contexts(self, ids: torch.Tensor, *, progress: bool = True) -> Iterator[tuple[int, torch.Tensor]]:
        """Numbers and token ids of contexts, read once more from the start; `ids` must grow."""
        wanted = iter(ids.tolist())
        number = next(wanted, None)
        bar = tqdm(self.store._iterate_tokenized_sequences(), desc="Contexts", disable=not progress, leave=False)
        for place, tokens in enumerate(bar):
            if number is None:
                return
            if place == number:
                yield number, tokens[self.at_hook.seqpos].cpu()
                number = next(wanted, None)

    def identity(self) -> dict[str, dict[str, Any]]:
        """See `SampleStream`."""
        meta, positions = self.at_hook.sae.cfg.metadata, range(self.on["context_size"])[self.at_hook.seqpos]
        samples = {
            **{name: self.on[name] for name in self.on if name not in ("hook_name", "model_class_name")},
            "seqpos_slice": [positions.start, positions.stop, positions.step],
            "prepend_bos": self.at_hook.prepends_bos,
            "disable_concat_sequences": bool(meta.disable_concat_sequences),
            "sequence_separator_token": meta.get("sequence_separator_token", "bos"),
            "data": dataset_fingerprint(self.store.dataset),  # type: ignore[arg-type]  one set, not a dictionary
        }
        read = {
            "model_class_name": self.on["model_class_name"],
            "model_kwargs": meta.model_from_pretrained_kwargs,
            "hook_name": self.on["hook_name"],
            "hook_head_index": meta.hook_head_index,
            "exclude_special_tokens": sorted(self.at_hook.excluded),
            "max_norm": self.at_hook.max_norm,
        }
        return {"samples": samples, "read": read}

    def describe(self) -> dict[str, Any]:
        """Model, hook and data, as they are shown."""
        return {
            "model": self.on["model_name"],
            "hook": self.on["hook_name"],
            "tokens": "all",
            "dataset": self.on["dataset_path"],
            "split": self.on["dataset_split"],
            "context_size": self.on["context_size"],
            "max_norm": self.at_hook.max_norm if math.isfinite(self.at_hook.max_norm) else None,
            "max_norm_over_median": OUTLIER_FACTOR if self.max_norm_is_found else None,
            "encoder": None,
        }
