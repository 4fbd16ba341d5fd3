"""Local files of data: whether they are there, of which kind they are, and which of a folder's are its data."""

import glob
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.data_files import DataFilesDict, DataFilesList, get_data_patterns

DATA_ENDINGS = {".arrow", ".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt"}

_NEVER_DATA = {"", ".md"}
_SAVED = ("state.json", "dataset_dict.json")
_ABOUT_DATA = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|citation)([-_]\w+)?", re.IGNORECASE)
_DESCRIPTIONS = ("README.md", ".huggingface.yaml")
_DESCRIBES_FILES = re.compile(rb"^(configs|dataset_info):", re.MULTILINE)


def ending_of(file: str) -> str:
    """What the name of a file ends in, in lower case, before the `.gz` of one that is compressed."""
    return Path(file.lower().removesuffix(".gz")).suffix


def is_there(pattern: str) -> bool:
    """Whether a path, which may hold wildcards, is that of a file."""
    try:
        return any(Path(file).is_file() for file in glob.iglob(pattern, recursive=True))  # noqa: PTH207
    except (OSError, ValueError):  # a name that no file can have
        return False


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in _SAVED)


DataFiles = tuple[str, str | DataFilesDict]
"""An ending, and the files that have it."""


def data_files(path: str, kinds: Mapping[str, Any]) -> DataFiles | None:
    """The ending of local files of data, and which they are, as `datasets.load_dataset` takes them.

    Args:
        path: of a file, of several by a glob, or of a folder.
        kinds: the endings that are data, with what reads each; in a folder the first one where two are as common.

    Returns:
        Of a folder, the files of its commonest kind by their splits, as `datasets` divides them. What else lies there,
        such as a LICENSE, has no say, nor is it text where its ending is `.txt`. None where `kinds` has no such ending,
        and for a folder that `datasets` knows better: `save_to_disk` wrote it, a README says which files are what, or
        most are of other kinds, as pictures.
    """
    if not os.path.isdir(path):  # noqa: PTH112  also of names that no folder can have
        ending = ending_of(path)
        # The name of a file that is there stands for it alone, whatever it would match.
        return (ending, glob.escape(path) if os.path.isfile(path) else path) if ending in kinds else None  # noqa: PTH113
    folder = Path(path).resolve()
    if is_saved(folder) or any(map(_describes_files, (folder / name for name in _DESCRIPTIONS))):
        return None
    literal = glob.escape(str(folder))
    found = DataFilesDict.from_patterns(get_data_patterns(literal), base_path=literal)
    splits = {split: [file for file in files if not _is_about_data(file)] for split, files in found.items()}
    counts = Counter(ending_of(file) for files in splits.values() for file in files)
    n_of_kind = {ending: sum(counts[other] for other in kinds if kinds[other] == kinds[ending]) for ending in kinds}
    commonest = max(kinds, key=lambda ending: (n_of_kind[ending], counts[ending]))
    n_others = sum(counts[ending] for ending in counts.keys() - kinds.keys() - _NEVER_DATA)
    if n_of_kind[commonest] <= n_others:
        return None
    same = {ending for ending in kinds if kinds[ending] == kinds[commonest]}
    chosen = {split: [file for file in files if ending_of(file) in same] for split, files in splits.items()}
    return commonest, DataFilesDict(
        {str(split): DataFilesList(files, found[split].origin_metadata) for split, files in chosen.items() if files}
    )


def _is_about_data(file: str) -> bool:
    """Whether a file's name says that it is about the data beside it: a README.txt, a LICENSE-MIT.txt."""
    return ending_of(file) == ".txt" and _ABOUT_DATA.fullmatch(Path(file).name.partition(".")[0]) is not None


def _describes_files(readme: Path) -> bool:
    return readme.is_file() and _DESCRIBES_FILES.search(readme.read_bytes()) is not None
