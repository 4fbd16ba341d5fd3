"""Zero-shot classification as such: text prototypes, nearest class, accuracy, and splits that share no image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Accuracy:
    """Accuracy, averaged in both ways."""

    images: float
    """Fraction of the images classified correctly."""
    classes: float
    """Mean over classes of the fraction of their images classified correctly, as the sources average."""


def text_prototypes(
    encode_text: Callable[[list[str]], torch.Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    renormalise: bool = True,
    progress: bool = True,
) -> torch.Tensor:
    """
    One text embedding per class, shape (n_classes, d_embedding).

    Each template's embedding is normalised, they are averaged, and the mean is normalised again, so that no
    class is preferred because its templates agree; the sources leave the last step out.

    Args:
        encode_text: Embeddings of texts, shape (n, d_embedding).
        class_names: Names in the order of the labels.
        templates: Texts with `{}` where the name goes.
        renormalise: Whether to normalise the mean.
        progress: Whether to show a progress bar over classes.
    """
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(f"a template needs {{}} where the class name goes, got {wrong[0]!r}")
    if not templates or not class_names:
        raise ValueError("text_prototypes needs at least one class name and one template")
    rows = []
    for name in tqdm(class_names, desc="Text prototypes", disable=not progress, leave=False):
        with torch.no_grad():
            embeddings = encode_text([template.replace("{}", name) for template in templates])
        rows.append(torch.nn.functional.normalize(embeddings.float(), dim=-1).mean(0))
    prototypes = torch.stack(rows)
    return torch.nn.functional.normalize(prototypes, dim=-1) if renormalise else prototypes


def classify(embeddings: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """The class whose prototype is most similar to each image embedding, shape (images,), int64, on the CPU."""
    similarity = torch.nn.functional.normalize(embeddings.float(), dim=-1) @ prototypes.to(embeddings.device).float().T
    return similarity.argmax(-1).cpu()


def accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> Accuracy:
    """Accuracy of predicted classes, shape (images,); classes without images are left out of their mean."""
    correct = (predicted == labels).double()
    per_class = torch.zeros(int(labels.max()) + 1, dtype=torch.float64).index_add_(0, labels, correct)
    images = torch.bincount(labels)
    return Accuracy(correct.mean().item(), (per_class / images)[images > 0].mean().item())


def disjoint_splits(
    labels: Sequence[int] | torch.Tensor, counting_fraction: float = 0.5, seed: int = 0
) -> tuple[list[int], list[int]]:
    """
    Indices of counting and test images where a data set has one split only; no image is in both.

    Every class is divided in the given proportion, to the nearest image, and keeps at least one image on each
    side where it has two.
    """
    if not 0 < counting_fraction < 1:
        raise ValueError(f"counting_fraction must lie between 0 and 1, got {counting_fraction}")
    labels = torch.as_tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    counting: list[int] = []
    test: list[int] = []
    for label in labels.unique().tolist():
        index = (labels == label).nonzero()[:, 0]
        index = index[torch.randperm(len(index), generator=generator)].tolist()
        n = min(max(round(counting_fraction * len(index)), 1), max(len(index) - 1, 1))
        counting += index[:n]
        test += index[n:]
    return sorted(counting), sorted(test)
