"""Zero-shot classification with only the top n concepts of a class switched on, or with them switched off.

The protocol is PatchSAE's, with what its sources lack:

- concepts are counted and accuracy is measured on different images;
- besides the mask of the true class ("oracle", which the sources use and which tells the model the answer in
  part), the mask of the class that the plain model predicts;
- the same with random concepts and with others of equal frequency;
- the plain model's accuracy first, as a gate: a low one betrays labels that do not match the class names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.evaluation.classification import Accuracy, accuracy, classify
from sae_lens_sparsemax.evaluation.concept_counts import (
    PATCHSAE_THRESHOLD,
    LabelledBatches,
    check_labels,
    count_concepts,
    frequency_matched_concepts,
    most_counted,
    random_concepts,
)
from sae_lens_sparsemax.models.splice import MaskedReconstruction
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook

Mask = Literal["oracle", "predicted"]
Concepts = Literal["top", "random", "frequency_matched"]
Switch = Literal["on", "off"]

MASKS: tuple[Mask, ...] = ("oracle", "predicted")
CONCEPTS: tuple[Concepts, ...] = ("top", "random", "frequency_matched")
_SWITCHES: tuple[Switch, ...] = ("on", "off")
N_CONCEPTS = (1, 5, 10, 50)


class Condition(NamedTuple):
    """Which concepts are on or off, by the names of `MaskedAccuracy`."""

    n: int
    concepts: Concepts
    mask: Mask
    switch: Switch


@dataclass(frozen=True)
class MaskedAccuracy:
    """Accuracy with some concepts on or off."""

    n: int
    """Concepts per class."""
    switch: Switch
    """Whether only these concepts are kept, or only these are removed."""
    mask: Mask
    """Whose class decides: the image's true one, or the one that the plain model predicts."""
    concepts: Concepts
    """The class's top concepts, or a control."""
    accuracy: Accuracy
    """What the model then achieves."""


@dataclass(frozen=True)
class ZeroShotResult:
    """Zero-shot classification through one SAE."""

    n_images: int
    """Images tested."""
    n_classes: int
    """Classes to choose from."""
    threshold: float
    """Activation above which a concept was counted."""
    no_sae: Accuracy
    """The plain model."""
    all_concepts: Accuracy
    """The layer replaced by its reconstruction from all concepts: `on_M`."""
    masked: list[MaskedAccuracy]
    """With some concepts on or off."""


def evaluate_zero_shot(
    sae: SAE[Any],
    model: VisionAtHook,
    counting_images: LabelledBatches,
    test_images: LabelledBatches,
    prototypes: torch.Tensor,
    *,
    n_concepts: Sequence[int] = N_CONCEPTS,
    concepts: Sequence[Concepts] = CONCEPTS,
    threshold: float = PATCHSAE_THRESHOLD,
    min_plain_accuracy: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ZeroShotResult:
    """Count each class's concepts, then classify other images with the top n of them on or off.

    Args:
        sae: Any SAELens SAE.
        model: The image model at the SAE's hook.
        counting_images: Batches of (pixel values, labels) to count on.
        test_images: Batches to test on, of other images; read twice, so a generator will not do.
        prototypes: Text embedding per class, of `text_prototypes`.
        n_concepts: Values of n.
        concepts: The top concepts and the controls.
        threshold: Activation above which a concept counts; `activation_quantile` gives one that suits the SAE.
        min_plain_accuracy: The gate: least accuracy of the plain model over images; by default twice chance.
        seed: Seed of the controls.
        progress: Whether to show progress bars over batches.

    Raises:
        ValueError: If the plain model fails the gate, a label is out of range, or `test_images` is a generator.
    """
    if iter(test_images) is test_images:
        raise ValueError("test_images is read twice: give a list or a data loader, not a generator")
    n_classes = len(prototypes)
    gate = min(1.0, 2 / n_classes) if min_plain_accuracy is None else min_plain_accuracy
    predicted: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    for pixel_values, batch_labels in tqdm(test_images, desc="Plain model", disable=not progress, leave=False):
        labels.append(check_labels(batch_labels, n_classes))
        predicted.append(classify(model.embeddings(pixel_values), prototypes))
    if not labels:
        raise ValueError("there are no images to test on")
    truth = torch.cat(labels)
    no_sae = accuracy(torch.cat(predicted), truth)
    if no_sae.images < gate:
        raise ValueError(
            f"the plain model classifies {no_sae.images:.1%} of the images correctly, below {gate:.1%}: check that "
            "the class names are in the order of the labels"
        )
    counts = count_concepts(sae, model, counting_images, n_classes, threshold, progress=progress)
    tables: dict[tuple[int, Concepts], torch.Tensor] = {
        (n, kind): _select(counts, n, kind, seed) for n in n_concepts for kind in concepts
    }
    tested = conditions(n_concepts, concepts)
    answers: list[list[torch.Tensor]] = [[] for _ in range(len(tested) + 1)]
    reconstruction = MaskedReconstruction(sae)
    bar = tqdm(test_images, desc="Masked concepts", disable=not progress, leave=False)
    for i, (pixel_values, _) in enumerate(bar):
        answers[-1].append(classify(model.embeddings(pixel_values, reconstruction.edit(None)), prototypes))
        for slot, (n, kind, mask, switch) in enumerate(tested):
            keep = tables[n, kind][labels[i] if mask == "oracle" else predicted[i]]
            edit = reconstruction.edit(keep if switch == "on" else ~keep)
            answers[slot].append(classify(model.embeddings(pixel_values, edit), prototypes))
    masked = [
        MaskedAccuracy(n, switch, mask, kind, accuracy(torch.cat(answers[slot]), truth))
        for slot, (n, kind, mask, switch) in enumerate(tested)
    ]
    everything = accuracy(torch.cat(answers[-1]), truth)
    return ZeroShotResult(len(truth), n_classes, threshold, no_sae, everything, masked)


def conditions(n_concepts: Sequence[int], concepts: Sequence[Concepts]) -> list[Condition]:
    """All that `evaluate_zero_shot` tests beside the plain model and all concepts."""
    return [
        Condition(n, kind, mask, switch)
        for n in dict.fromkeys(n_concepts)
        for kind in concepts
        for mask in MASKS
        for switch in _SWITCHES
    ]


def _select(counts: torch.Tensor, n: int, kind: Concepts, seed: int) -> torch.Tensor:
    top = most_counted(counts, n)
    if kind == "top":
        return top
    control = random_concepts if kind == "random" else frequency_matched_concepts
    return control(counts, top, seed)
