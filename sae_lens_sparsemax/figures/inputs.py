"""From a model, an SAE and a few images or texts to what the concept cards take, in one pass.

But: everything is held in memory. For a whole data set, use `sparsemax-sae explore`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sae_lens import SAE

from sae_lens_sparsemax.explore.concepts import concepts_of_image, concepts_of_text
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
    best, n_seen = {concept: _Strongest(n) for concept in concepts}, 0
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
        ValueError: see `concepts_of_text`.
    """
    best, n_seen = {concept: _Strongest(n) for concept in concepts}, 0
    for text in texts:
        found = concepts_of_text(model, sae, text)
        n_seen += int(found.is_read.sum())
        for concept, strongest in best.items():
            acts = found.feature_acts[:, concept]
            strongest.add(acts, acts.abs().max(), lambda acts=acts, found=found: (found.tokens, acts))
    return {concept: ReferenceContexts(each.inputs, each.acts, n_seen) for concept, each in best.items()}


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
