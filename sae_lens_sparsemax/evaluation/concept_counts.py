"""Which concepts belong to a class: counting, the top n, and controls for what any n concepts would do.

Counting follows PatchSAE: for each class, the (image, token) pairs on which a concept's activation exceeds a
threshold. Its fixed threshold of 0.2 means different things for SAEs of different activation scale, so the
threshold can also be taken as a quantile of the SAE's own activations.
"""

from collections.abc import Iterable
from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.models.encoding import CHUNK_SIZE, encode_chunks, tokens_2d
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook

PATCHSAE_THRESHOLD = 0.2
# Non-zero activations of which a quantile is taken.
_ENOUGH_VALUES = 1_000_000

LabelledBatches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Batches of pixel values and of labels, shape (images,), int64; `LabelledImages`, or a list."""


def count_concepts(
    sae: SAE[Any],
    model: VisionAtHook,
    images: LabelledBatches,
    n_classes: int,
    threshold: float = PATCHSAE_THRESHOLD,
    *,
    chunk_size: int = CHUNK_SIZE,
    progress: bool = True,
) -> torch.Tensor:
    """For each class and concept, the number of (image, token) pairs with an activation above `threshold`.

    Returns:
        Counts of shape (n_classes, d_sae), int32.

    Raises:
        ValueError: If a label is not in [0, n_classes).
    """
    counts = torch.zeros(n_classes, sae.cfg.d_sae, dtype=torch.int32)
    for pixel_values, labels in tqdm(images, desc="Counting concepts", disable=not progress, leave=False):
        labels = check_labels(labels, n_classes)
        activations = model.activations(pixel_values)
        label_of_token = labels.repeat_interleave(activations.shape[1])
        start = 0
        for chunk in encode_chunks(sae, [tokens_2d(activations)], chunk_size):
            above = (chunk.acts.value > threshold).cpu()
            row, col = chunk.acts.row.cpu()[above], chunk.acts.col.cpu()[above]
            key = label_of_token[start + row] * sae.cfg.d_sae + col
            counts.view(-1).index_add_(0, key, torch.ones(len(key), dtype=torch.int32))
            start += chunk.acts.n_rows
    return counts


def activation_quantile(sae: SAE[Any], model: VisionAtHook, images: LabelledBatches, quantile: float) -> float:
    """The quantile of an SAE's non-zero activations, as a threshold that suits its scale.

    Only as many images are read as give a million non-zero activations, so they should be in random order.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must lie in [0, 1], got {quantile}")
    values: list[torch.Tensor] = []
    for pixel_values, _ in images:
        activations = model.activations(pixel_values)
        values.extend(chunk.acts.value.cpu() for chunk in encode_chunks(sae, [activations]))
        if sum(map(len, values)) >= _ENOUGH_VALUES:
            break
    ordered = torch.cat(values).double().sort().values
    if len(ordered) == 0:
        raise ValueError("the SAE has no active concept on these images")
    return ordered[round(quantile * (len(ordered) - 1))].item()


def most_counted(counts: torch.Tensor, n: int) -> torch.Tensor:
    """The `n` most frequent concepts of each class, as a mask of shape (n_classes, d_sae), bool.

    Ties go to the concept with the lower index. A class with fewer than `n` concepts that were ever counted
    keeps only those.
    """
    order = counts.argsort(dim=1, descending=True, stable=True)[:, :n]
    mask = torch.zeros_like(counts, dtype=torch.bool)
    return mask.scatter_(1, order, counts.gather(1, order) > 0)


def random_concepts(counts: torch.Tensor, chosen: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """As many concepts as each class has in `chosen`, drawn from those counted for any class; a control.

    Args:
        counts: Counts of shape (n_classes, d_sae).
        chosen: The mask controlled for, of the same shape.
        seed: Seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    alive = (counts.sum(0) > 0).nonzero()[:, 0]
    mask = torch.zeros_like(chosen)
    for row, n in enumerate(chosen.sum(1).tolist()):
        mask[row, alive[torch.randperm(len(alive), generator=generator)[:n]]] = True
    return mask


def frequency_matched_concepts(counts: torch.Tensor, chosen: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """For each class, concepts other than its own but as frequent over all classes; the stronger control.

    What remains of a class under this control is owed to its concepts being frequent, not to their being its
    own. Each chosen concept gives its place to the one that comes next to it in total count, above or below at
    random, and is not taken yet.

    Args:
        counts: Counts of shape (n_classes, d_sae).
        chosen: The mask controlled for, of the same shape.
        seed: Seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    by_total = counts.sum(0).argsort(descending=True, stable=True)
    n_alive = int((counts.sum(0) > 0).sum())
    rank = torch.empty_like(by_total).scatter_(0, by_total, torch.arange(len(by_total)))
    mask = torch.zeros_like(chosen)
    for row in range(len(chosen)):
        taken = set(rank[chosen[row]].tolist())
        for place in sorted(taken):
            sign = 1 if torch.rand((), generator=generator) < 0.5 else -1
            steps = (sign * side * distance for distance in range(1, n_alive) for side in (1, -1))
            free = (place + s for s in steps if 0 <= place + s < n_alive and place + s not in taken)
            found = next(free, None)
            if found is not None:
                taken.add(found)
                mask[row, by_total[found]] = True
    return mask


def check_labels(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Labels on the CPU as int64; raises `ValueError` for one that is not in [0, n_classes)."""
    labels = torch.as_tensor(labels).cpu().long()
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < n_classes:
        raise ValueError(f"labels must lie in [0, {n_classes}), got {int(labels.min())} to {int(labels.max())}")
    return labels
