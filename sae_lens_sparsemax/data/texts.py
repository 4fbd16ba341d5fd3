"""Texts: a hub data set, a local folder or local files, each with one text column; some set apart by their hash.

A row whose text is null, a number, a list or no JSON is left out, counted and named; too many of them are an error.
Empty texts are left out as well, but are no mistake: every third row of WikiText is one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from sae_lens.training.activations_store import ActivationsStore

from sae_lens_sparsemax.data.loading import explained, load_rows, require_column
from sae_lens_sparsemax.data.local_files import data_files
from sae_lens_sparsemax.data.quickstart import quickstart_text
from sae_lens_sparsemax.settings.sentences import Mistake, must_be

logger = logging.getLogger(__name__)

_UTF_8 = {"encoding": "utf-8-sig"}  # with or without a byte-order mark, which is no text
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}), ".json": ("json", {}), ".parquet": ("parquet", {}), ".txt": ("text", _UTF_8),
    # The text as it stands: `NA` is no number that is missing.
    ".csv": ("csv", {"keep_default_na": False}), ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
}  # fmt: skip
_LINES = ("text", {**_UTF_8, "sample_by": "line"})
_HALF_CHARACTERS = re.compile("[\ud800-\udfff]")
# What the activations store looks for before text, without chat formatting and with it.
_TOKENS = ("tokens", "input_ids")
_CONVERSATIONS = ("conversation", "conversations", "messages")

MAX_BAD_TEXT_FRACTION = 0.01
"""Share of the rows read that may hold no text, beyond the first ten; as for images."""

_N_NAMED = 10

PARTS = ("train", "validation", "held_out")
"""Parts of a data set: what is trained on, what is looked at while training, and what nobody looked at."""


@dataclass(frozen=True)
class TextData:
    """One named set of text."""

    path: str
    """Hub id, local jsonl, json, parquet, csv, tsv or txt file, or folder; `quickstart` is the package's own text. A
    blank line, with spaces in it or not, separates the documents of a `.txt` file."""
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
    label_column: str | None = None,
    streaming: bool = True,
    use_chat_formatting: bool = False,
) -> Dataset | IterableDataset:
    """Load a data set whose text is in the column ``text``, or what the activations store reads in its place.

    Where no other column is named, lists of token ids in ``tokens`` or ``input_ids`` come before ``text``, or with
    chat formatting conversations in ``conversation``, ``conversations`` or ``messages``; they are not checked. Without
    ``text``, that of ``problem`` is taken.

    Args:
        path: a hub id, a local folder (of data files, see ``data_files``, or written by ``save_to_disk``), or a local
            ``.jsonl``, ``.json``, ``.parquet``, ``.csv``, ``.tsv`` or ``.txt`` file (also ``.gz``; globs
            allowed). A blank line, with spaces in it or not, separates the documents of a ``.txt`` file.
            ``"quickstart"`` is the text that the package carries, with the splits train and validation.
        split: the split to use.
        config: the configuration, for hub data sets that have several.
        text_column: the column with the text; renamed to ``text``.
        label_column: a column to keep beside it, whatever it holds; renamed to ``label``.
        streaming: read while training, rather than convert everything first.
        use_chat_formatting: the activations store's setting of that name.

    Raises:
        ValueError: missing file, no rows, missing column (the message names the columns there are),
            a column that holds no text, too many rows without any, or whatever ``datasets`` reports, in one sentence.
    """
    lines: Any = None
    data: Any = None
    columns = [text_column] if label_column is None else [text_column, label_column]
    # Numbers in the column with the text are text as well.
    builders = {
        ending: (builder, {**options, "converters": dict.fromkeys(columns, str)} if builder == "csv" else options)
        for ending, (builder, options) in _BUILDERS.items()
    }
    read = partial(_column_to_read, text_column, label_column, use_chat_formatting)
    try:
        with explained(path):
            files = data_files(os.path.expanduser(path), _BUILDERS)  # noqa: PTH111  leaves what names no user as it is
        load = partial(load_rows, path, split, config, streaming, quickstart=quickstart_text, files=files)
        lines, first = _json_lines(load, None if files is None else files[0])
        column, is_text = read(first)
        if column not in first or not is_text:
            lines = None
            data = load(builders=builders)
            with explained(path):
                first = next(iter(data), None)
    except StopIteration:  # what `datasets` raises for a JSON lines file without lines
        first = None
    if first is None:
        raise ValueError(f"The data set {path!r} (split {split!r}) must have rows, got none.")
    column, is_text = read(first)
    if not is_text:
        return data.remove_columns("tokens") if column == "input_ids" and "tokens" in first else data
    require_column("text_column", column, first, path)
    if label_column is not None:
        require_column("label_column", label_column, first, path)
    if lines is not None:
        return _texts_alone(lines, _IsText(path, column), column).map(_ParsedLine(column, label_column))
    columns[0] = column
    if columns != ["text"] or not first.keys().isdisjoint(_TOKENS):
        # Alone, since the activations store would prefer a column of token ids to the one asked for.
        renamed = {old: new for old, new in zip(columns, ("text", "label"), strict=False) if old != new}
        data = data.select_columns(columns).rename_columns(renamed)
    return _texts_alone(data, _IsText(path), column)


def require_one_context(store: ActivationsStore, path: str) -> None:
    """Raise a ValueError unless the store's data fill one context; the store is left at its start."""
    if store.cached_activation_dataset is not None:
        return
    first = next(store.iterable_sequences, None)
    if first is None:
        raise must_be("context_size", f"at most the number of tokens in the data set {path!r}", store.context_size)
    store.n_dataset_processed = 0
    store.iterable_sequences = store._iterate_tokenized_sequences()


def part_of_document(text: str, held_out_fraction: float) -> str:
    """Which of `PARTS` a document belongs to, decided by the SHA-256 of its text alone.

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
        raise ValueError(f"The data set {path!r} must hold text to hold documents of it out, got token ids.")
    chosen = dataset.filter(BelongsTo(part, held_out_fraction))
    if next(iter(chosen), None) is None:
        condition = f"such that a document of {path!r} belongs to the part {part!r}"
        raise must_be("held_out_fraction", condition, held_out_fraction)
    return chosen


class BelongsTo:
    """Filter for `datasets`: documents of one part. A class, since the library hashes its filters by pickling them."""

    def __init__(self, part: str, held_out_fraction: float) -> None:
        self.part, self.held_out_fraction = part, held_out_fraction

    def __call__(self, document: dict[str, Any]) -> bool:
        return part_of_document(document["text"], self.held_out_fraction) == self.part


def _json_lines(load: Callable[..., Any], ending: str | None) -> tuple[Any, dict[str, Any]]:
    """The lines of JSON lines files, not parsed, and the first value of every key; None and none for anything else.

    The library's own reader is stopped by one broken line, or one value of another type.
    """
    if ending not in (".jsonl", ".json"):
        return None, {}
    data = load(builders={**_BUILDERS, ".jsonl": _LINES, ".json": _LINES})
    lines = [row["text"].strip() for row in islice(iter(data), _N_NAMED)]
    opening = next(filter(None, lines), "")
    # One value over many lines, of which each may be a document by itself.
    if opening.startswith("[") or (ending == ".json" and _parsed(opening) is None):
        return None, {}
    return data, {key: value for line in reversed(lines) for key, value in (_parsed(line) or {}).items()}


def _texts_alone(data: Any, is_text: _IsText, text_column: str) -> Any:
    """The rows with a text that is not empty."""
    texts = data.filter(is_text, with_indices=True)
    if isinstance(data, Dataset) and is_text.n_seen == 0 and len(texts) < len(data):
        # The library remembered the rows from an earlier run, so those without text were not named.
        for index, text in enumerate(data["text"]):
            is_text({"text": text}, index)
    if next(iter(texts), None) is None:
        found = is_text.first_errors[0] if is_text.first_errors else "its rows are empty"
        condition = f"a column with text of the data set {is_text.path!r}"
        raise Mistake("text_column", f"must be {condition}, got {text_column!r}: {found}")
    return texts


class _IsText:
    """Filter for `datasets`: rows with a text that is not empty; counts those with something else in its place.

    Args:
        path: what to call the data in messages.
        json_column: where the text is in a line of JSON; None if the column `text` is the text.
    """

    def __init__(self, path: str, json_column: str | None = None) -> None:
        self.path, self.json_column = path, json_column
        self.n_seen, self.n_bad = 0, 0
        self.first_errors: list[str] = []
        """The first ten rows without text."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The library takes what is pickled for the identity of the filter; what was counted is no part of it.
        return _IsText, (self.path, self.json_column)

    def __call__(self, row: dict[str, Any], index: int) -> bool:
        if index == 0:  # another pass over the same rows
            self.n_seen = self.n_bad = 0
        self.n_seen += 1
        value, error = row["text"], "no JSON object"
        if self.json_column is not None and value.strip():
            line = _parsed(value)
            value = None if line is None else line.get(self.json_column)
            error = error if line is None else f"{type(value).__name__} values"
        elif not isinstance(value, str):
            error = f"{type(value).__name__} values"
        if isinstance(value, str):
            return bool(value.strip())
        self.n_bad += 1
        self._count(f"row {index} holds {error}, not text")
        return False

    def _count(self, error: str) -> None:
        if error not in self.first_errors and len(self.first_errors) < _N_NAMED:
            self.first_errors.append(error)
            logger.warning("Left out of the data set %r: %s.", self.path, error)
        if self.n_bad > max(_N_NAMED, MAX_BAD_TEXT_FRACTION * self.n_seen):
            raise ValueError(
                f"{self.n_bad} of the first {self.n_seen} rows of {self.path!r} could not be used, more than the "
                f"share of {MAX_BAD_TEXT_FRACTION} that may be without text. The first: {self.first_errors[0]}"
            )


class _ParsedLine:
    """Maps a line of JSON to the text in it, and to what is beside it."""

    def __init__(self, text_column: str, label_column: str | None = None) -> None:
        self.text_column, self.label_column = text_column, label_column

    def __call__(self, line: dict[str, str]) -> dict[str, Any]:
        row = _parsed(line["text"]) or {}
        # Half a character, as a text that was cut leaves it, cannot be written.
        text = {"text": _HALF_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", row[self.text_column])}
        return text if self.label_column is None else text | {"label": row.get(self.label_column)}


def _parsed(line: str) -> dict[str, Any] | None:
    """The JSON object on a line; None where there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _column_to_read(
    text_column: str, label_column: str | None, use_chat_formatting: bool, row: dict[str, Any]
) -> tuple[str, bool]:
    """The column of such a row that the activations store is to read, and whether it is to hold text."""
    if text_column != "text" or label_column is not None:
        return text_column, True
    if use_chat_formatting:
        others = [name for name in _CONVERSATIONS if name in row]
    else:
        others = [name for name in _TOKENS if _are_token_ids(row.get(name))]
    if others:
        return others[0], False
    return "problem" if "problem" in row and "text" not in row and not use_chat_formatting else "text", True


def _are_token_ids(value: Any) -> bool:
    values = value.tolist() if hasattr(value, "tolist") else value  # as a data set that was saved may be formatted
    return isinstance(values, list) and all(isinstance(each, int) for each in values)
