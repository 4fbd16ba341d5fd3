"""Loading a data set, whatever its columns hold: from the hub, a local folder, local files, or the package itself.

But: data sets that need a Python script are not loaded (`datasets` 4 and later run none).
"""

import glob
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset

from sae_lens_sparsemax.data.quickstart import QUICKSTART


def load_rows(
    path: str,
    split: Any,
    config: str | None,
    streaming: bool,
    builders: Mapping[str, str],
    quickstart: Callable[[Any], Dataset],
) -> Dataset | IterableDataset:
    """The rows of a data set as `datasets` gives them.

    Args:
        path: a hub id, a local folder (of data files, or written by `save_to_disk`), local files (also `.gz`; globs
            allowed), or `quickstart`.
        split: the split to use. Local files form one, `train`; a slice such as `train[:1%]` works too.
        config: the configuration, for hub data sets that have several.
        streaming: read as the rows are asked for, rather than convert everything first.
        builders: the endings of local files that are taken, with the builder of `datasets` for each.
        quickstart: gives a split of what the package carries.

    Raises:
        ValueError: a missing file, folder or split, or a file of another kind.
        Exception: whatever `datasets` raises; see `explained`.
    """
    if path == QUICKSTART:
        data = quickstart(split)
        return data.to_iterable_dataset() if streaming else data
    expanded = str(Path(path).expanduser())
    builder = builders.get(Path(expanded.removesuffix(".gz")).suffix.lower())
    if builder is not None:
        if not is_there(expanded):
            raise ValueError(f"there is no file {expanded}.")
        options: dict[str, Any] = {"sample_by": "paragraph"} if builder == "text" else {}
        return datasets.load_dataset(builder, data_files=expanded, split=split, streaming=streaming, **options)
    folder = Path(expanded)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        data = datasets.load_from_disk(expanded)
        if isinstance(data, DatasetDict):
            if split not in data:
                raise ValueError(f"it has no split {split!r}, only {', '.join(map(repr, data))}.")
            data = data[split]
        return data.to_iterable_dataset() if streaming else data
    if folder.is_file():
        raise ValueError(f"its ending is none of {', '.join(builders)}.")
    if path.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError("there is no such folder.")
    return datasets.load_dataset(expanded if folder.is_dir() else path, name=config, split=split, streaming=streaming)


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Whatever `datasets` reports of a data set, as a `ValueError` of one sentence; advice for script data sets."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "scripts are no longer supported" in reason:
            reason += " Use a parquet version of the data set."
        raise ValueError(f"The data set {path!r} could not be loaded: {reason}") from error


def is_there(pattern: str) -> bool:
    """Whether a path, which may hold wildcards, is that of a file."""
    return any(Path(file).is_file() for file in glob.iglob(pattern, recursive=True))  # noqa: PTH207
