"""Held-out images for the evaluator, decoded once, with their classes; and the evaluator on them."""

import itertools
from typing import Any

import torch
from datasets import Dataset, IterableDataset

from sae_lens_sparsemax.data.image_loader import decode_image
from sae_lens_sparsemax.data.images import ImageDataset, class_names_of, encoded_images
from sae_lens_sparsemax.evaluation.vision_evaluator import LabelledImages, VisionEvaluator
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.tokens import Tokens
from sae_lens_sparsemax.models.zero_shot import text_prototypes

_AT_A_TIME = 64


def load_eval_images(
    data: ImageDataset, image_processor: Any, n_images: int, *, image_column: str = "image", label_column: str | None
) -> LabelledImages:
    """The first `n_images` usable images, in a fixed random order where the data have random access.

    Args:
        data: images, and classes as whole numbers.
        image_processor: the model's.
        n_images: how many; fewer if there are not so many.
        image_column: the column with the images.
        label_column: the column with the classes; None for images without.

    Raises:
        ValueError: a column is missing, or no image can be used.
    """
    data = encoded_images(data, image_column, "for evaluation")
    if label_column is not None and data.features is not None and label_column not in data.features:
        raise ValueError(
            f"The data set for evaluation has no column {label_column!r}; its columns are "
            f"{', '.join(map(repr, data.features))}."
        )
    rows = _rows(data)
    images, labels, pixels = [], [], []
    for row in rows:
        try:
            images.append(decode_image(row[image_column]))
        except Exception:
            continue
        labels.append(row[label_column] if label_column is not None else 0)
        if len(images) == _AT_A_TIME or len(labels) == n_images:
            pixels.append(image_processor(images, return_tensors="pt")["pixel_values"])
            images = []
        if len(labels) == n_images:
            break
    if images:
        pixels.append(image_processor(images, return_tensors="pt")["pixel_values"])
    if not labels:
        raise ValueError("None of the images for evaluation could be decoded.")
    return LabelledImages(torch.cat(pixels), torch.tensor(labels) if label_column is not None else None)


def load_evaluator(
    model: HookedViT,
    data: ImageDataset,
    hook_name: str,
    tokens: Tokens,
    *,
    n_images: int,
    image_column: str,
    label_column: str,
    class_names: list[str] | None,
    templates: list[str],
    batch_size: int,
) -> VisionEvaluator:
    """The evaluator on the images of a data set, with zero-shot classification where the model has text.

    Args:
        model: the vision model.
        data: images, and classes as whole numbers if the model classifies.
        hook_name: where the SAE reads and is spliced in.
        tokens: which tokens it reads.
        n_images: how many images; see `load_eval_images`.
        image_column: the column with the images.
        label_column: the column with the classes.
        class_names: in the order of the classes; None for those of the data set.
        templates: prompts with one `{}` for the class name.
        batch_size: images at a time.

    Raises:
        ValueError: a column or the names of the classes are missing, or no image can be used.
    """
    images = load_eval_images(
        data,
        model.image_processor,
        n_images,
        image_column=image_column,
        label_column=label_column if model.classifies else None,
    )
    prototypes = None
    if model.classifies:
        names = class_names or class_names_of(data, label_column)
        prototypes = text_prototypes(model, names, templates)
    return VisionEvaluator(model, images, hook_name, tokens, prototypes, batch_size=batch_size)


def _rows(data: ImageDataset) -> Any:
    if isinstance(data, IterableDataset):
        return data
    assert isinstance(data, Dataset)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    return itertools.chain.from_iterable(
        data.select(order[start : start + _AT_A_TIME]) for start in range(0, len(order), _AT_A_TIME)
    )
