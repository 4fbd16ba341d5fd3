"""From a model, an SAE and a few images or texts to what the concept cards take, in one pass.

`references` takes the images or texts from the data set that the SAE's metadata name. But: everything is held in
memory. For a whole data set, use `sparsemax-sae explore`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sae_lens import SAE

from sae_lens_sparsemax.explore.concepts import concepts_of_image, concepts_of_text
from sae_lens_sparsemax.explore.run import open_stream
from sae_lens_sparsemax.explore.samples import encode_batch
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.explore.steering import as_whole
from sae_lens_sparsemax.explore.streams import ImageStream, TextStream
from sae_lens_sparsemax.explore.weights import token_logits, unembedding
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.patch_geometry import patch_geometry
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.settings.sentences import must_be

_SAMPLES = 200
_TOKENS_SHOWN = 8


class ReferenceImages(NamedTuple):
    """One concept's part of `image_concept_card`."""

    images: list[Image.Image]
    """Highest mean activation over tokens first."""
    masks: list[np.ndarray]
    """Its activations over each image."""
    activations: torch.Tensor
    """`(n,)`, where it is active, over the tokens of all images."""
    indices: list[int]
    """Which of the given images these are."""
    n_seen: int
    """Tokens of all images."""
    class_counts: Mapping[str, int] | None = None
    """How many of the images it fires on are of each class, where the classes are known."""


class ReferenceContexts(NamedTuple):
    """One concept's part of `text_concept_card`."""

    contexts: list[tuple[list[str], torch.Tensor]]
    """Tokens and activations of the texts with the largest activation, largest first."""
    activations: torch.Tensor
    """`(n,)`, where it is active, over the tokens of all texts."""
    n_seen: int
    """Tokens of all texts, without those that the SAE was trained without."""
    promoted: Sequence[tuple[str, float]] = ()
    """Tokens and the change of their logits along its decoder row, most promoted first, where they are known."""
    suppressed: Sequence[tuple[str, float]] = ()
    """The same, most suppressed first."""


def reference_images(
    model: HookedViT, sae: SAE[Any], images: Iterable[Image.Image], concepts: Sequence[int], n: int = 10
) -> dict[int, ReferenceImages]:
    """The images on which each of some concepts fires most, by mean activation over tokens.

    Raises:
        ValueError: there is no such concept; and see `concepts_of_image`.
    """
    best, n_seen = _strongest(sae, concepts, n), 0
    for image in images:
        found = concepts_of_image(model, sae, image)
        n_seen += len(found.feature_acts)
        for concept, strongest in best.items():
            acts = found.feature_acts[:, concept]
            strongest.add(acts, acts.abs().mean(), lambda c=concept, found=found: (found.image, found.mask(c)))
    return {
        concept: ReferenceImages(
            [image for image, _ in each.inputs], [mask for _, mask in each.inputs], each.acts, each.indices, n_seen
        )
        for concept, each in best.items()
    }


def reference_contexts(
    model: Any, sae: SAE[Any], texts: Iterable[str], concepts: Sequence[int], n: int = 8
) -> dict[int, ReferenceContexts]:
    """The texts on which each of some concepts fires most, by its largest activation.

    Raises:
        ValueError: there is no such concept; and see `concepts_of_text`.
    """
    best, n_seen = _strongest(sae, concepts, n), 0
    for text in texts:
        found = concepts_of_text(model, sae, text)
        n_seen += int(found.is_read.sum())
        for concept, strongest in best.items():
            acts = found.feature_acts[:, concept]
            strongest.add(acts, acts.abs().max(), lambda acts=acts, found=found: (found.tokens, acts))
    return {concept: ReferenceContexts(each.inputs, each.acts, n_seen) for concept, each in best.items()}


@torch.no_grad()
def references(
    sae: SAE[Any] | str | Path, concepts: Sequence[int], n: int = 8, settings: ExploreSettings | None = None
) -> dict[int, Any]:
    """What the cards of some concepts take, from the images or texts that the SAE was trained on.

    Args:
        sae: any SAELens SAE whose metadata name model, hook and data; its folder; or `release_or_repo:id`.
        concepts: at least one.
        n: images or texts of each.
        settings: what replaces the metadata; by default 200 images or contexts are read.

    Returns:
        For each concept `ReferenceImages`, by mean activation, or `ReferenceContexts`, by the largest.

    Raises:
        ValueError: there is no such concept, the metadata lack something, or the SAE reads the class token alone.
    """
    settings = settings or ExploreSettings(samples=_SAMPLES)
    sae = load_sae(str(sae), settings.device) if isinstance(sae, str | Path) else sae
    best, n_seen = _strongest(sae, concepts, n), 0
    stream = open_stream(sae, settings)
    if isinstance(stream, ImageStream) and stream.tokens == "cls":
        raise ValueError("This SAE reads the class token alone, so its concepts have no place in the image.")
    classes = {concept: Counter[str]() for concept in best}
    for batch, _ in stream.batches(0):
        encoded = encode_batch(sae, batch)
        n_seen += encoded.kept.n_rows
        for concept, strongest in best.items():
            mine = encoded.placed.col == concept
            acts = torch.zeros(encoded.placed.n_rows)
            acts[encoded.placed.row[mine]] = encoded.placed.value[mine].float()
            for number, own in zip(batch.ids.tolist(), acts.view(len(batch.ids), -1), strict=True):
                strength = own.abs().max() if isinstance(stream, TextStream) else own.abs().mean()
                strongest.add(own, strength, lambda number=number, own=own: (number, own))
                if isinstance(stream, ImageStream) and stream.class_names and own.any() and stream.label(number) >= 0:
                    classes[concept][stream.class_names[stream.label(number)]] += 1
    if isinstance(stream, ImageStream):
        return {c: _images(stream, each, n_seen, classes[c]) for c, each in best.items()}
    ids = torch.tensor(sorted({number for each in best.values() for number, _ in each.inputs}), dtype=torch.int64)
    texts = {number: stream.at_hook.token_texts(tokens.tolist()) for number, tokens in stream.contexts(ids)}
    found = {}
    for concept, each in best.items():
        contexts = [(texts[number], own) for number, own in each.inputs]
        found[concept] = ReferenceContexts(contexts, each.acts, n_seen, *_logits(stream, sae, concept))
    return found


def _images(stream: ImageStream, each: "_Strongest", n_seen: int, classes: Mapping[str, int]) -> ReferenceImages:
    images, masks = [stream.image(number) for number, _ in each.inputs], []
    for image, (_, acts) in zip(images, each.inputs, strict=True):
        geometry = patch_geometry(stream.model.image_processor, image.size, stream.model.cfg.patch_size)
        masks.append(geometry.mask(acts[stream.n_prefix_tokens :], "nearest"))
    numbers = [number for number, _ in each.inputs]
    return ReferenceImages(images, masks, each.acts, numbers, n_seen, classes or None)


def _logits(stream: TextStream, sae: SAE[Any], concept: int) -> list[list[tuple[str, float]]]:
    """Promoted and suppressed tokens of a concept; none where there is no unembedding."""
    if (matrix := unembedding(stream.model, stream.on["hook_name"], sae.cfg.d_in)) is None:
        return [[], []]
    row = sae.W_dec[concept : concept + 1].detach().float()
    logits = token_logits(row, matrix.to(row.device), _TOKENS_SHOWN, progress=False)
    pairs = ((logits.promoted, logits.promoted_by), (logits.suppressed, logits.suppressed_by))
    return [
        [
            (stream.at_hook.token_text(token), value)
            for token, value in zip(ids[0].tolist(), by[0].tolist(), strict=True)
        ]
        for ids, by in pairs
    ]


def _strongest(sae: SAE[Any], concepts: Sequence[int], n: int) -> dict[int, "_Strongest"]:
    """What gathers n inputs for each of some concepts, if there are such concepts."""
    if as_whole(n, "n") < 1:
        raise must_be("n", "at least 1", n)
    for concept in concepts:
        if not 0 <= as_whole(concept, "concept") < sae.cfg.d_sae:
            raise must_be("concept", f"between 0 and {sae.cfg.d_sae - 1}", concept)
    return {concept: _Strongest(n) for concept in concepts}


class _Strongest:
    """The n inputs on which one concept is strongest, and its activations on all of them."""

    def __init__(self, n: int) -> None:
        self.n, self._n_seen = n, 0
        self._best: list[tuple[float, int, Any]] = []
        self.acts = torch.zeros(0)
        """Where the concept is active."""

    def add(self, acts: torch.Tensor, strength: torch.Tensor, shown: Callable[[], Any]) -> None:
        """Add an input by the concept's activations at its tokens; `shown` makes what is kept of it."""
        if acts.any():
            self.acts = torch.cat([self.acts, acts[acts != 0]])
            # The number decides between equal ones: images cannot be compared.
            entry = (float(strength), -self._n_seen, shown())
            self._best = sorted([*self._best, entry], reverse=True)[: self.n]
        self._n_seen += 1

    @property
    def inputs(self) -> list[Any]:
        """What was kept of each input, strongest first."""
        return [shown for _, _, shown in self._best]

    @property
    def indices(self) -> list[int]:
        """Which of the inputs these are."""
        return [-number for _, number, _ in self._best]
