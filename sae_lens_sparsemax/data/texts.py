"""Texts: a hub data set, a local folder or local files, each with one text column; some set apart by their hash.

But: data sets that need a Python script are not loaded (``datasets`` 4 and later run none).
"""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_sparsemax.data.quickstart import QUICKSTART, quickstart_text

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
# What the activations store reads without a text column: token ids, or conversations.
_OTHER_COLUMNS = {"tokens", "input_ids", "problem", "conversation", "conversations", "messages"}

PARTS = ("train", "validation", "held_out")
"""Parts of a data set: what is trained on, what is looked at while training, and what nobody looked at."""


@dataclass(frozen=True)
class TextData:
    """One named set of text."""

    path: str
    """Hub id, local jsonl, json, parquet or txt file, or folder; `quickstart` is the package's own text."""
    split: str = "train"
    """Split of the data set; local files form the split train."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    text_column: str = "text"
    """Column with the text."""
    held_out: bool = False
    """Only the documents that `held_out_fraction` keeps out of training, by the hash of their text."""


def load_text_dataset(
    path: str,
    *,
    split: str = "train",
    config: str | None = None,
    text_column: str = "text",
    streaming: bool = True,
) -> Dataset | IterableDataset:
    """Load a data set whose text is in the column ``text``.

    Args:
        path: a hub id, a local folder (of data files, or written by ``save_to_disk``), or a local
            ``.jsonl``, ``.json``, ``.parquet`` or ``.txt`` file (also ``.gz``; globs allowed). A blank
            line separates the documents of a ``.txt`` file. ``"quickstart"`` is the text that the package
            carries, with the splits train and validation.
        split: the split to use.
        config: the configuration, for hub data sets that have several.
        text_column: the column with the text; renamed to ``text``.
        streaming: read while training, rather than convert everything first.

    Raises:
        ValueError: missing file, no rows, missing text column (the message names the columns there are),
            a column that holds no text, or whatever ``datasets`` reports, in one sentence.
    """
    try:
        data = _load(path, split, config, streaming)
        first = next(iter(data), None)
    except StopIteration:  # what `datasets` raises for a JSON lines file without lines
        first = data = None
    except (OSError, RuntimeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"The data set {path!r} could not be loaded: {_reason(error)}") from error
    if first is None:
        raise ValueError(f"The data set {path!r} (split {split!r}) has no rows.")
    return _with_text_column(data, dict(first), path, text_column)


def require_one_context(store: ActivationsStore, path: str) -> None:
    """Raise a ValueError unless the store's data fill one context; the store is left at its start."""
    if store.cached_activation_dataset is not None:
        return
    first = next(store.iterable_sequences, None)
    if first is None:
        raise ValueError(
            f"The data set {path!r} holds fewer tokens than one context of {store.context_size}: "
            "use more text or a smaller 'context_size'."
        )
    store.n_dataset_processed = 0
    store.iterable_sequences = store._iterate_tokenized_sequences()


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


def _load(path: str, split: Any, config: str | None, streaming: bool) -> Any:
    if path == QUICKSTART:
        data = quickstart_text(split)
        return data.to_iterable_dataset() if streaming else data
    expanded = str(Path(path).expanduser())
    builder = _BUILDERS.get(_suffix(expanded))
    if builder is not None:
        if not any(Path(file).is_file() for file in glob.iglob(expanded, recursive=True)):  # noqa: PTH207
            raise ValueError(f"there is no file {expanded}.")
        options: dict[str, Any] = {"sample_by": "paragraph"} if builder == "text" else {}
        # Local files form one split, which `datasets` calls train; a slice such as train[:1%] still works.
        options |= {"data_files": expanded, "split": split, "streaming": streaming}
        return datasets.load_dataset(builder, **options)
    folder = Path(expanded)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _from_disk(folder, split, streaming)
    if folder.is_file():
        raise ValueError(f"its ending is none of {', '.join(_BUILDERS)}.")
    if path.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError("there is no such folder.")
    options = {"name": config, "split": split, "streaming": streaming}
    return datasets.load_dataset(expanded if folder.is_dir() else path, **options)


def _from_disk(folder: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    data = datasets.load_from_disk(str(folder))
    if isinstance(data, DatasetDict):
        if split not in data:
            raise ValueError(f"it has no split {split!r}, only {', '.join(map(repr, data))}.")
        data = data[split]
    return data.to_iterable_dataset() if streaming else data


def _with_text_column(data: Any, first: dict[str, Any], path: str, text_column: str) -> Any:
    if text_column not in first:
        if text_column == "text" and _OTHER_COLUMNS & set(first):
            return data
        raise ValueError(
            f"The data set {path!r} has no column {text_column!r}; its columns are "
            f"{', '.join(map(repr, first))}: name the one with the text as 'text_column'."
        )
    if not isinstance(first[text_column], str):
        raise ValueError(
            f"The column {text_column!r} of the data set {path!r} holds "
            f"{type(first[text_column]).__name__} values, not text."
        )
    if text_column == "text":
        return data
    # Alone, since the activations store would prefer a column of token ids to the one asked for.
    return data.select_columns([text_column]).rename_column(text_column, "text")


def _suffix(path: str) -> str:
    return Path(path.removesuffix(".gz")).suffix.lower()


def _reason(error: Exception) -> str:
    """The error's own words on one line; the advice for script data sets added."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "scripts are no longer supported" in text:
        text += " Use a parquet or JSON lines version of the data set."
    return text
