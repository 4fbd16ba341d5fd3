"""Documents for a comparison, with held-out documents chosen by their hash."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset

from sae_lens_sparsemax.compare.config import CompareConfig, TextData

_FILE_FORMATS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}

_HASHED_BYTES = 16 * 2**20

PARTS = ("train", "validation", "held_out")


def load_text(data: TextData, where: str) -> Dataset | IterableDataset:
    """
    The documents of a text file or a Hugging Face data set, as a data set with the one column `text`.

    Data sets of the hub are streamed. Raises `ValueError` if no path is given, the kind of file is unknown or
    the column is missing; `where` names the setting in these errors.
    """
    if data.path is None:
        raise ValueError(f"{where}.path must be given: a .jsonl, .txt or .parquet file, or a data set's name")
    path = Path(data.path)
    if path.suffix in _FILE_FORMATS:
        if not path.is_file():
            raise ValueError(f"{where}.path is {data.path}, but there is no such file")
        dataset = load_dataset(_FILE_FORMATS[path.suffix], data_files=str(path), split="train")
    else:
        dataset = load_dataset(data.path, split=data.split, streaming=True)
    assert isinstance(dataset, Dataset | IterableDataset)
    columns = dataset.column_names or []
    if data.text_column not in columns:
        raise ValueError(f"{where}.text_column is {data.text_column!r}, but the columns are {columns}")
    if data.text_column != "text":
        dataset = dataset.select_columns([data.text_column]).rename_column(data.text_column, "text")
    else:
        dataset = dataset.select_columns(["text"])
    return dataset.filter(_is_not_empty)


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


def training_part(cfg: CompareConfig, part: str) -> Dataset | IterableDataset:
    """The documents of the training data that belong to one of `PARTS`."""
    dataset = load_text(cfg.training_data, "training_data")
    return dataset.filter(_BelongsTo(part, cfg.held_out_fraction))


def evaluation_text(cfg: CompareConfig, name: str) -> Dataset | IterableDataset:
    """The documents of a named evaluation set."""
    data = cfg.evaluation_data[name]
    return training_part(cfg, "held_out") if data.held_out else load_text(data, f"evaluation_data.{name}")


def file_facts(paths: Iterable[str | None]) -> dict[str, list[tuple[str, int, str]]]:
    """
    Name, size and hash of local files and of the files in local folders, by the path given.

    Part of a cache's fingerprint, so that a file that was replaced is noticed, and one that was only copied is not.
    Of large files both ends are hashed. Names that are no local path are left out.
    """
    facts = {}
    for given in paths:
        if given is not None and (path := Path(given)).exists():
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            facts[given] = [(f.name, f.stat().st_size, _hash_of_ends(f)) for f in files if f.is_file()]
    return facts


def _hash_of_ends(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        file.seek(max(file.tell(), path.stat().st_size - _HASHED_BYTES))
        digest.update(file.read())
    return digest.hexdigest()[:16]


class _BelongsTo:
    """Filter for `datasets`; a class, since the library hashes its filters by pickling them."""

    def __init__(self, part: str, held_out_fraction: float) -> None:
        self.part = part
        self.held_out_fraction = held_out_fraction

    def __call__(self, row: dict[str, str]) -> bool:
        return part_of_document(row["text"], self.held_out_fraction) == self.part


def _is_not_empty(row: dict[str, str]) -> bool:
    return bool(row["text"] and row["text"].strip())
