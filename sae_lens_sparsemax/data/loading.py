"""Loading a data set, whatever its columns hold: from the hub, a local folder, local files, or the package itself.

But: data sets that need a Python script are not loaded (`datasets` 4 and later run none).
"""

import glob
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.exceptions import DatasetGenerationError

from sae_lens_sparsemax.data.local_files import DATA_ENDINGS, DataFiles, data_files, ending_of, is_saved, is_there
from sae_lens_sparsemax.data.quickstart import QUICKSTART
from sae_lens_sparsemax.settings.sentences import listed, must_be, must_be_one_of, shown, similar_path
from sae_lens_sparsemax.settings.values import expanded

_HUB_NAME = re.compile(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
# What is said of empty files: JSON or CSV, parquet, text.
_NO_ROWS = ("at least one example when writing data", "BatchSize must be greater than 0", "corresponds to no data")
_INDEX = "__index_level_0__"  # what is made of values without a column's name
_SCHEMA_METADATA = re.compile(r"-- schema metadata --.*?(?=\bto\s*\{)", re.DOTALL)


class _Unreadable(ValueError):
    """What `explained` makes of an error."""


def load_rows(
    path: str,
    split: Any,
    config: str | None,
    streaming: bool,
    builders: Mapping[str, tuple[str, dict[str, Any]]],
    quickstart: Callable[[Any], Dataset],
    files: DataFiles | None = None,
) -> Dataset | IterableDataset:
    """The rows of a data set as `datasets` gives them; of local `.txt` files, what stands between blank lines.

    Args:
        path: a hub id, a local folder (of data files, see `data_files`, or written by `save_to_disk`), local files
            (also `.gz`; globs allowed), or `quickstart`.
        split: the split to use. Local files, and what was saved without splits, form one, `train`; a slice such as
            `train[:1%]` works too, but not of local files or the hub where they are streamed.
        config: the configuration, for hub data sets that have several.
        streaming: read as the rows are asked for, rather than convert everything first.
        builders: the endings of local files that are taken, with the builder of `datasets` for each and its options.
        quickstart: gives a split of what the package carries.
        files: what `data_files` found, where it was asked before.

    Raises:
        ValueError: a missing file, folder or split, a file of another kind, or whatever `datasets` reports; of a
            stream, while it is read as well.
    """
    with explained(path):
        if path == QUICKSTART:
            data = quickstart(split)
            return data.to_iterable_dataset() if streaming else data
        data, is_text = _rows(path, split, config, streaming, builders, files)
        if isinstance(data, IterableDataset):
            _explain_reading(data._ex_iterable, path)
        if is_text:
            # A line may hold nothing but spaces, as in WikiText, and is blank all the same.
            data = data.map(_without_blank_lines, batched=True)
        return data


def split_names(path: str, config: str | None) -> list[str]:
    """The splits of a data set that `load_rows` reads.

    Raises:
        ValueError: whatever `datasets` reports.
    """
    folder = expanded(path)
    with explained(path):
        if path == QUICKSTART:
            return ["train", "validation"]
        if os.path.isfile(folder / "dataset_dict.json"):  # noqa: PTH113  also of names that no folder can have
            return json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if os.path.isdir(folder) and not is_saved(folder):  # noqa: PTH112
            found = data_files(str(folder), dict.fromkeys(DATA_ENDINGS))
            return list(found[1]) if found else datasets.get_dataset_split_names(str(folder), config)
        if is_local_data(path) or glob.has_magic(path):
            return ["train"]
        try:
            return datasets.get_dataset_split_names(path, config)
        except OSError:  # not on the hub, or out of reach: loading says so
            return ["train"]


def _rows(
    path: str, split: Any, config: str | None, streaming: bool, builders: Mapping[str, Any], files: DataFiles | None
) -> tuple[Any, bool]:
    """The rows, and whether they are paragraphs of text."""
    refuse_missing_data(path)
    given: dict[str, Any] = {"split": split, "streaming": streaming}
    file = str(expanded(path))
    if found := files or data_files(file, builders):
        ending, data_of = found
        builder, options = builders[ending]
        if ending == ".txt":
            options = {**options, "sample_by": "paragraph"}
        if ending == ".json":  # is read whole anyway, and a stream has values of several types in quotes
            given["streaming"] = False
        data = datasets.load_dataset(builder, data_files=data_of, **given, **options)
        if builder == "csv" and _INDEX in (data.column_names or next(iter(data), {})):
            _require_named_columns(data_of, str(split).partition("[")[0], options)
        return data.to_iterable_dataset() if streaming and isinstance(data, Dataset) else data, ending == ".txt"
    folder = Path(file)
    if not os.path.exists(file):  # noqa: PTH110
        try:
            return datasets.load_dataset(path, name=config, **given), False
        except OSError as error:  # not on the hub, or the hub out of reach
            raise ValueError(f"{error}; nor is there a file or folder of that name{_similar(file)}") from error
    if is_saved(folder):
        data = _part_of_saved(datasets.load_from_disk(file), split)
        return data.to_iterable_dataset() if streaming else data, False
    if folder.is_file():
        raise must_be_one_of("its ending", ending_of(file), builders)
    if glob.has_magic(file):
        raise must_be("its path", "one without *, ? and [, for a folder of such files", file)
    if ".txt" in builders:
        described: Any = datasets.load_dataset_builder(file, name=config)
        if described.name == "text" and described.config.sample_by == "line":  # which it is where the README says none
            return datasets.load_dataset(file, name=config, sample_by="paragraph", **given), True
    return datasets.load_dataset(file, name=config, **given), False


def _part_of_saved(saved: Dataset | DatasetDict, split: Any) -> Dataset:
    """The rows that a split, or a slice of one, names; what was saved without splits is `train`, or the one it was."""
    kept = saved if isinstance(saved, DatasetDict) else {"train": saved, saved.split or "train": saved}
    splits = {str(name): rows for name, rows in kept.items()}
    for name in (part.partition("[")[0] for part in str(split).split("+")):
        if name not in splits:
            raise must_be_one_of("split", name, splits)
    if split in splits:
        return splits[split]
    slices = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(splits[name]) for name in splits})
    return datasets.concatenate_datasets(
        [splits[each.splitname].select(range(each.from_, each.to)) for each in slices]  # type: ignore[attr-defined]
    )


def _require_named_columns(data_of: Any, split: str, options: Mapping[str, Any]) -> None:
    """Refuse tables whose first row has more values than there are names: pandas takes what is first for no column."""
    rows = datasets.load_dataset("csv", data_files=data_of, split=split, streaming=True, index_col=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns that it leaves the last values out
        if _INDEX in next(iter(rows), {}):
            return  # a column has that name
    raise ValueError(
        "the first line must name every column, got more values below it than names (a value that holds what "
        "separates them must stand in quotes)"
    )


def _without_blank_lines(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"text": [part.strip("\n") for text in rows["text"] for part in _BLANK_LINES.split(f"\n{text}\n")]}


def _explain_reading(source: Any, path: str) -> Any:
    """Have the errors of reading a stream's source explained, however it is filtered, mapped or divided afterwards."""
    cls = type(source)

    def guarded(name: str) -> Callable[[Any], Iterator[Any]]:
        def read(source: Any) -> Iterator[Any]:
            with explained(path):
                yield from getattr(cls, name)(source)

        return read

    def derived(name: str) -> Callable[..., Any]:
        return lambda source, *args, **kwargs: _explain_reading(getattr(cls, name)(source, *args, **kwargs), path)

    # Its class, since what is derived from a stream keeps its source and looks at the kind of it.
    names = [name for name in ("__iter__", "_iter_arrow") if hasattr(cls, name)]
    changed: dict[str, Any] = {name: guarded(name) for name in names}
    # A process's files, or files in another order, are a source of their own.
    changed |= {name: derived(name) for name in dir(cls) if name.endswith("shard_data_sources")}
    changed |= {"shuffle_data_sources": derived("shuffle_data_sources")}
    source.__class__ = type(cls.__name__, (cls,), changed)
    return source


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Whatever `datasets` reports of a data set, as a `ValueError` of one sentence with the cause of it."""
    try:
        yield
    except (_Unreadable, StopIteration):
        raise
    except Exception as error:
        cause = error.__cause__ or error if isinstance(error, DatasetGenerationError) else error
        reason = " ".join(_SCHEMA_METADATA.sub("", str(cause)).split()) or type(cause).__name__
        if isinstance(cause, UnicodeDecodeError):
            reason += " (text must be written in UTF-8)"
        if any(said in reason for said in _NO_ROWS):
            reason = "it must have rows, got none"
        if "scripts are no longer supported" in reason:
            reason += " Use a parquet version of the data set."
        raise _Unreadable(f"The data set {shown(path)} could not be loaded: {reason}") from error


def require_column(setting: str, column: str, columns: Iterable[str], path: str) -> None:
    """Raise a ValueError with the nearest column, unless the one that a setting names is among those of a data set."""
    columns = list(columns)
    if column not in columns:
        raise must_be(setting, f"one of {listed(list(map(repr, columns)))} in the data set {path!r}", column, columns)


def _is_local(name: str) -> bool:
    """Whether a name can only be meant for a local file or folder: the hub has none like it, or its parent exists."""
    return not _HUB_NAME.fullmatch(name) or ("/" in name and Path(name).parent.is_dir())


def is_local_data(path: str) -> bool:
    """Whether the name of a data set is that of local files or a folder, there or missing."""
    file = os.path.expanduser(path)  # noqa: PTH111  leaves what is empty as it is
    return ending_of(file) in DATA_ENDINGS or os.path.exists(file) or _is_local(path)  # noqa: PTH110


def data_identity(path: str | None, split: str | None, config: str | None) -> tuple[str, str, str | None]:
    """What a set of data is known by: the same for two that hold the same rows, however their path is written."""
    file = os.path.expanduser(path or "")  # noqa: PTH111
    return os.path.realpath(file) if os.path.exists(file) else file, split or "train", config  # noqa: PTH110


def refuse_missing_data(*paths: str | None, setting: str = "") -> None:
    """Raise a ValueError with the nearest, if a data set can only be local and is not there.

    Asked before a model is loaded or anything is computed; it reads nothing.

    Args:
        paths: names of data sets as `load_rows` takes them; None for one that is not given.
        setting: what names another in place of one that an SAE's metadata may have named, on another machine.
    """
    hint = f"; --{setting} names another" if setting else ""
    for path in paths:
        if path is None or path == QUICKSTART:
            continue
        with explained(path):
            file = os.path.expanduser(path)  # noqa: PTH111
            if is_local_data(path) and not (os.path.exists(file) or is_there(file)):  # noqa: PTH110
                kind = "file" if ending_of(file) in DATA_ENDINGS else "file or folder"
                raise ValueError(f"there is no {kind} {shown(file)}{_similar(file)}{hint}")


def name_to_load(name: str, setting: str = "model_name") -> str:
    """What libraries know the model that a setting names by: the path of its folder, or its name on the hub.

    Raises:
        ValueError: it can only be local and is gone; names the nearest folder.
    """
    folder = expanded(name)
    if _is_local(name) and not os.path.isdir(folder):  # noqa: PTH112  also of names that no folder can have
        near = similar_path(folder, lambda entry: (entry / "config.json").is_file())
        raise ValueError(
            f"The model {shown(name)} could not be loaded: there is no such folder{near}; --{setting} says where it is"
        )
    return str(folder) if name.startswith("~") else name


def _similar(path: str) -> str:
    return similar_path(Path(path), lambda entry: entry.is_dir() or ending_of(entry.name) in DATA_ENDINGS)
