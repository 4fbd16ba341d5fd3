"""From a model, an SAE and a few images or texts to what the concept cards take, in one pass.

But: everything is held in memory. For a whole data set, use `sparsemax-sae explore`.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sae_lens import SAE

from sae_lens_sparsemax.explore.concepts.image import concepts_of_image
from sae_lens_sparsemax.explore.concepts.text import concepts_of_text
from sae_lens_sparsemax.models.hooked_vit import HookedViT


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


class ReferenceContexts(NamedTuple):
    """One concept's part of `text_concept_card`."""

    contexts: list[tuple[list[str], torch.Tensor]]
    """Tokens and activations of the texts with the largest activation, largest first."""
    activations: torch.Tensor
    """`(n,)`, where it is active, over the tokens of all texts."""
    n_seen: int
    """Tokens of all texts, without those that the SAE was trained without."""


def reference_images(
    model: HookedViT, sae: SAE[Any], images: Iterable[Image.Image], concepts: Sequence[int], n: int = 10
) -> dict[int, ReferenceImages]:
    """The images on which each of some concepts fires most, by mean activation over tokens.

    Raises:
        ValueError: see `concepts_of_image`.
    """
    best: dict[int, list[tuple[float, int, Image.Image, np.ndarray]]] = {concept: [] for concept in concepts}
    acts: dict[int, list[torch.Tensor]] = {concept: [] for concept in concepts}
    n_seen = 0
    for index, image in enumerate(images):
        found = concepts_of_image(model, sae, image)
        n_seen += len(found.feature_acts)
        for concept in best:
            values = found.feature_acts[:, concept]
            if not values.any():
                continue
            acts[concept].append(values[values != 0])
            # The index decides between equal ones: images cannot be compared.
            _keep(best[concept], (float(values.abs().mean()), -index, found.image, found.mask(concept)), n)
    result = {}
    for concept, heap in best.items():
        ranked = sorted(heap, reverse=True)
        result[concept] = ReferenceImages(
            [image for _, _, image, _ in ranked],
            [mask for *_, mask in ranked],
            torch.cat(acts[concept]) if acts[concept] else torch.zeros(0),
            [-index for _, index, _, _ in ranked],
            n_seen,
        )
    return result


def reference_contexts(
    model: Any, sae: SAE[Any], texts: Iterable[str], concepts: Sequence[int], n: int = 8
) -> dict[int, ReferenceContexts]:
    """The texts on which each of some concepts fires most, by its largest activation.

    Raises:
        ValueError: see `concepts_of_text`.
    """
    best: dict[int, list[tuple[float, int, list[str], torch.Tensor]]] = {concept: [] for concept in concepts}
    acts: dict[int, list[torch.Tensor]] = {concept: [] for concept in concepts}
    n_seen = 0
    for index, text in enumerate(texts):
        found = concepts_of_text(model, sae, text)
        n_seen += int(found.is_read.sum())
        for concept in best:
            values = found.feature_acts[:, concept]
            if not values.any():
                continue
            acts[concept].append(values[values != 0])
            _keep(best[concept], (float(values.abs().max()), -index, found.tokens, values), n)
    return {
        concept: ReferenceContexts(
            [(tokens, values) for _, _, tokens, values in sorted(heap, reverse=True)],
            torch.cat(acts[concept]) if acts[concept] else torch.zeros(0),
            n_seen,
        )
        for concept, heap in best.items()
    }


def _keep(heap: list[Any], entry: Any, n: int) -> None:
    """Add to the n largest."""
    if len(heap) < n:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)
