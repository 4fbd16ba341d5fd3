"""Documents for a comparison, with held-out documents chosen by their hash."""

from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset

from sae_lens_sparsemax.compare.config import CompareConfig, TextData
from sae_lens_sparsemax.data.held_out import BelongsTo

_FILE_FORMATS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}


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


def training_part(cfg: CompareConfig, part: str) -> Dataset | IterableDataset:
    """The documents of the training data that belong to one of `PARTS`."""
    dataset = load_text(cfg.training_data, "training_data")
    return dataset.filter(BelongsTo(part, cfg.held_out_fraction))


def evaluation_text(cfg: CompareConfig, name: str) -> Dataset | IterableDataset:
    """The documents of a named evaluation set."""
    data = cfg.evaluation_data[name]
    return training_part(cfg, "held_out") if data.held_out else load_text(data, f"evaluation_data.{name}")


def _is_not_empty(row: dict[str, str]) -> bool:
    return bool(row["text"] and row["text"].strip())
