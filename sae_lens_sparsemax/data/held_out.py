"""Text that an SAE never trained on: documents set apart by their hash, the same at every start."""

from __future__ import annotations

import hashlib
from typing import Any

from datasets import Dataset, IterableDataset

PARTS = ("train", "validation", "held_out")


def part_of_document(text: str, held_out_fraction: float) -> str:
    """
    Which of `PARTS` a document belongs to, decided by the SHA-256 of its text alone.

    Copies of a document always fall into the same part, and a document keeps its part when the collection
    grows, shrinks or is reordered.
    """
    position = int.from_bytes(hashlib.sha256(text.strip().encode("utf-8")).digest()[:8], "big") / 2**64
    if position < held_out_fraction:
        return "validation"
    return "held_out" if position < 2 * held_out_fraction else "train"


def part_of_dataset(
    dataset: Dataset | IterableDataset, part: str, held_out_fraction: float, path: str
) -> Dataset | IterableDataset:
    """The documents of a data set that belong to one part.

    Args:
        dataset: documents in the column ``text``.
        part: ``"train"``, ``"validation"`` or ``"held_out"``; each document belongs to one of them.
        held_out_fraction: share of the documents in each of the last two.
        path: what to call the data set in messages.

    Raises:
        ValueError: the data are token ids, which have no documents to hash; or the part is empty.
    """
    assert part in PARTS
    if dataset.column_names is not None and "text" not in dataset.column_names:
        raise ValueError(f"The data set {path!r} has no text, so no documents of it can be held out by their hash.")
    chosen = dataset.filter(BelongsTo(part, held_out_fraction))
    if next(iter(chosen), None) is None:
        raise ValueError(f"No document of {path!r} belongs to the part {part!r} at a fraction of {held_out_fraction}.")
    return chosen


class BelongsTo:
    """Filter for `datasets`: documents of one part. A class, since the library hashes its filters by pickling them."""

    def __init__(self, part: str, held_out_fraction: float) -> None:
        self.part, self.held_out_fraction = part, held_out_fraction

    def __call__(self, document: dict[str, Any]) -> bool:
        return part_of_document(document["text"], self.held_out_fraction) == self.part
