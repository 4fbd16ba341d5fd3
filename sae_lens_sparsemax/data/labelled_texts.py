"""Texts with classes, to train and test probes on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from sae_lens_sparsemax.data.images import class_labels_of
from sae_lens_sparsemax.data.texts import load_text_dataset
from sae_lens_sparsemax.settings.sentences import Mistake, must_be, shown

logger = logging.getLogger(__name__)

MAX_CLASSES = 50
"""A column with more values than this holds no classes."""


@dataclass(frozen=True)
class LabelledText:
    """One named set of text with classes."""

    path: str
    """Hub id, local jsonl, json, parquet, csv or tsv file, or folder."""
    split: str = "train"
    """Split of the data set; local files form the split train."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    text_column: str = "text"
    """Column with the text."""
    label_column: str = "label"
    """Column with the class of each text, a word or a whole number."""


def load_labelled_texts(data: LabelledText, n_texts: int) -> tuple[list[str], list[str]]:
    """The first texts of a set that have a class, and their classes as text.

    Texts without a class (null, NaN, blank, or -1 in a column of named classes) are left out and counted.

    Raises:
        ValueError: see `load_text_dataset`; or the column has no classes, one alone, or more than `MAX_CLASSES`.
    """
    if data.label_column == data.text_column:
        raise must_be("label_column", "another column than text_column", data.label_column)
    rows: Any = load_text_dataset(
        data.path,
        split=data.split,
        config=data.config,
        text_column=data.text_column,
        label_column=data.label_column,
    )
    names = class_labels_of(rows, "label")
    texts, labels, n_unlabelled = [], [], 0
    for row in rows:
        label = _class_of(row["label"], names, data)
        if label is None:
            n_unlabelled += 1
            continue
        texts.append(row["text"])
        labels.append(label)
        if len(texts) == n_texts:
            break
    if n_unlabelled:
        logger.warning(
            "%d of %d texts of %r have no class in %r; they are left out",
            n_unlabelled,
            n_unlabelled + len(texts),
            data.path,
            data.label_column,
        )
    found = sorted(set(labels))
    if not 2 <= len(found) <= MAX_CLASSES:
        raise Mistake(
            "label_column",
            f"must be a column with 2 to {MAX_CLASSES} classes among the first {len(texts):,} texts of {data.path!r}, "
            f"got {len(found):,} in {data.label_column!r}, the first {shown(found[:3])}",
        )
    return texts, labels


def _class_of(value: Any, names: list[str] | None, data: LabelledText) -> str | None:
    """The class that a value of the column means; None for none."""
    if value is None or value != value or (names and value == -1):  # NaN is not equal to itself
        return None
    if isinstance(value, list | dict):
        raise must_be("label_column", f"a column of words or whole numbers in {data.path!r}", value)
    if names and isinstance(value, int):
        return names[value]
    # pandas makes floats of whole numbers where some are missing.
    text = str(int(value) if isinstance(value, float) and value % 1 == 0 else value)
    return text.encode(errors="replace").decode().strip() or None
