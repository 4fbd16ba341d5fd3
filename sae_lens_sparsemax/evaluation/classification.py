"""Zero-shot classification as such: text prototypes, nearest class, accuracy, loss, and splits that share no image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, normalize
from tqdm.auto import tqdm

from sae_lens_sparsemax.settings.sentences import must_be

_TEXTS_AT_A_TIME = 256


@dataclass(frozen=True)
class Accuracy:
    """Accuracy, averaged in both ways."""

    images: float
    """Fraction of the images classified correctly."""
    classes: float
    """Mean over classes of the fraction of their images classified correctly, as the sources average."""


@torch.no_grad()
def text_prototypes(
    encode_text: Callable[[list[str]], torch.Tensor],
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    progress: bool = False,
) -> torch.Tensor:
    """One text embedding per class: the zero-shot classifier of CLIP and SigLIP (Radford et al., 2021, section 3.1).

    Each prompt's embedding is normalised, they are averaged over the templates, and the mean is normalised again, so
    that no class is preferred because its templates agree; PatchSAE's code leaves the last step out.

    Args:
        encode_text: embeddings of texts, `(n, d_embed)`, such as `HookedViT.encode_text`.
        class_names: as they should appear in a sentence, in the order of the labels.
        templates: texts with `{}` where the name goes.
        progress: whether to show a progress bar over prompts.

    Returns:
        `(n_classes, d_embed)` float32, of unit norm.

    Raises:
        ValueError: a template without one place for the name, or no names or templates.
    """
    check_templates("templates", templates)
    if not class_names:
        raise must_be("class_names", "at least one name", list(class_names))
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    starts = tqdm(range(0, len(prompts), _TEXTS_AT_A_TIME), "Text prototypes", disable=not progress, leave=False)
    embeds = torch.cat([encode_text(prompts[start : start + _TEXTS_AT_A_TIME]).float() for start in starts])
    means = normalize(embeds, dim=-1).unflatten(0, (len(class_names), len(templates))).mean(dim=1)
    return normalize(means, dim=-1)


def check_templates(name: str, templates: Sequence[str]) -> None:
    """Raise `ValueError` unless the setting `name` holds templates, each with one place for the class name."""
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise must_be(name, "texts with one {} each for the class name", wrong)


def contrastive_loss(logits: torch.Tensor) -> torch.Tensor:
    """CLIP's training loss on pairs of an image and its text: cross-entropy over both directions, averaged.

    Args:
        logits: `(n_pairs, n_pairs)`, scaled similarities of images (rows) and texts; pairs on the diagonal.
    """
    pairs = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, pairs) + cross_entropy(logits.T, pairs)) / 2


def one_of_each_class(labels: torch.Tensor, n_classes: int) -> list[torch.Tensor]:
    """Groups of rows with one image of class 0, 1, ... in order, as many as the rarest class has images."""
    rows = [torch.nonzero(labels == label).flatten() for label in range(n_classes)]
    return [torch.stack([r[i] for r in rows]) for i in range(min(len(r) for r in rows))]


def classify(embeddings: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """The class whose prototype is most similar to each image embedding, shape (images,), int64, on the CPU."""
    similarity = normalize(embeddings.float(), dim=-1) @ prototypes.to(embeddings.device).float().T
    return similarity.argmax(-1).cpu()


def accuracy(predicted: torch.Tensor, labels: torch.Tensor) -> Accuracy:
    """Accuracy of predicted classes, shape (images,); classes without images are left out of their mean."""
    correct = (predicted == labels).double()
    per_class = torch.zeros(int(labels.max()) + 1, dtype=torch.float64).index_add_(0, labels, correct)
    images = torch.bincount(labels)
    return Accuracy(correct.mean().item(), (per_class / images)[images > 0].mean().item())


def disjoint_splits(labels: Sequence[int] | torch.Tensor, seed: int = 0) -> tuple[list[int], list[int]]:
    """Indices of counting and test images where a data set has one split only; no image is in both.

    Every class is halved, to the nearest image; one of a single image is counted.
    """
    labels = torch.as_tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    counting: list[int] = []
    test: list[int] = []
    for label in labels.unique().tolist():
        index = (labels == label).nonzero()[:, 0]
        index = index[torch.randperm(len(index), generator=generator)].tolist()
        n = max(round(len(index) / 2), 1)
        counting += index[:n]
        test += index[n:]
    return sorted(counting), sorted(test)
