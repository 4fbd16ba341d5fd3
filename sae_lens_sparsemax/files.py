"""Files: written whole or not at all, by one process at a time, as strict JSON, and checked for what they hold."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

T = TypeVar("T")

_HASHED_BYTES = 16 * 2**20

_locks: dict[Path, int] = {}
"""Descriptors of the locks that this process holds, by the path of the lock's file."""


def require_writable(folder: Path | str, name: str) -> None:
    """See that files can be written to `folder`, before the work whose results go there.

    The folder and its parents are made, a megabyte is written and all of it is taken away again.

    Args:
        folder: where files will be written; need not exist.
        name: of the setting that says so.

    Raises:
        ValueError: they cannot: a read-only place, a file in the way, a full disk.
    """
    try:
        with _folder(Path(folder)), tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(2**20))
            probe.flush()
            os.fsync(probe.fileno())
    except (OSError, ValueError) as error:  # ValueError: a path that holds a null
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{name} must be a place that can be written to, got {str(folder)!r}: {why}") from error


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Inside the block there is such a folder; afterwards, what was made for it and is still empty goes again."""
    made = []
    try:
        for each in (*reversed(folder.parents), folder):
            if not each.is_dir():
                each.mkdir(exist_ok=True)
                made.append(each)
        yield
    finally:
        for each in reversed(made):
            with suppress(OSError):
                each.rmdir()


@contextmanager
def only_writer(folder: Path | str, name: str, lock: str = ".lock") -> Iterator[None]:
    """Inside the block, no other process that asks for the same may write to `folder`, which is made if missing.

    The system frees the lock of a process that ends, however it does. Within one process blocks may be nested. Where
    the system or its file system has no locks, nothing is refused.

    Args:
        folder: where files will be written.
        name: of the setting that says so.
        lock: name of the hidden file that is locked meanwhile.

    Raises:
        ValueError: another process is in such a block, or the folder cannot be written to.
    """
    require_writable(folder, name)
    with _folder(Path(folder)):
        path = Path(folder).resolve() / lock
        if fcntl is None or path in _locks:
            yield
            return
        _locks[path] = _lock(path, f"{name} must be a folder that no other process is writing to, got {str(folder)!r}")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(_locks.pop(path))


def _lock(path: Path, refusal: str) -> int:
    """The descriptor of the file `path`, made and locked; a ValueError that says `refusal` if another has the lock."""
    assert fcntl is not None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ValueError(refusal) from error
        except OSError:  # a file system without locks
            return descriptor
        with suppress(FileNotFoundError):  # the process that had it may have taken the file away in between
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def _leave_locks_to_the_parent() -> None:
    """In a forked process: close its copies, so that a lock ends with the process that took it."""
    while _locks:
        os.close(_locks.popitem()[1])


if fcntl is not None:
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


@contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """A new, empty directory to fill, which takes the place of `path` when the block ends without an error.

    What is written goes to a hidden sibling first, is flushed to the disk, and is renamed in one step. An
    earlier directory at `path` is replaced; after an error it is as before. A sibling left by a killed
    process is removed by the next write of the same path, so one path must have one writer at a time.

    Args:
        path: the directory to make; its parents are made too.

    Yields:
        The directory to write into. Do not keep its name: it is gone after the block.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():  # killed between the two renames below
        old.rename(path)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        for file in sorted(new.rglob("*")):
            _flush(file)
        _flush(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    # A directory that is not empty cannot be renamed over; between these two steps `path` does not exist.
    if path.exists():
        path.rename(old)
    new.rename(path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """A name to write a file under, which takes the place of `path` when the block ends without an error.

    A reader sees the old content or the new, never a part.

    Args:
        path: the file to write; its folder is made if missing.

    Yields:
        A hidden sibling of `path`, to be written within the block.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    try:
        yield new
        _flush(new)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to the file `path`; a reader sees the old content or the new, never a part."""
    with atomic_file(path) as new:
        new.write_bytes(data)


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8 to the file `path`; a reader sees the old content or the new, never a part."""
    atomic_write_bytes(path, text.encode("utf-8"))


def _flush(path: Path) -> None:
    """Have the system write a file, or the entries of a directory, to the disk."""
    if os.name == "nt":  # Windows flushes neither a directory nor a file opened for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_atomically(path: str | Path, save: Callable[[Path], tuple[Path, Path]]) -> tuple[Path, Path]:
    """Run `save(folder)` on a folder beside `path` and move its files into `path` once all are written.

    A full disk or an interruption leaves what was in `path` as it was.

    Args:
        path: folder to save to; made if missing, other files in it stay.
        save: writes its files into the folder it is given and returns the paths of weights and config.

    Returns:
        The paths of weights and config in `path`.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=path) as scratch:
        weights, config = save(Path(scratch))
        for file in sorted(Path(scratch).iterdir()):
            file.replace(path / file.name)
    return path / weights.name, path / config.name


def save_json(result: Any, path: str | Path) -> Path:
    """
    Save a dataclass, or plain data that may hold dataclasses, as strict JSON.

    Floats that are not finite become `null`, which `load_json` reads back as NaN in float fields.
    """
    atomic_write_text(path, json.dumps(_plain(result), indent=2, allow_nan=False) + "\n")
    return Path(path)


def load_json(result_class: type[T], path: str | Path) -> T:
    """
    Read a dataclass saved by `save_json`; fields that hold dataclasses come back as dictionaries.

    Raises `ValueError` if the file's keys are not the fields of `result_class`.
    """
    if not is_dataclass(result_class):
        raise ValueError(f"load_json reads into a dataclass, but was given {result_class!r}")
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    names = {field.name for field in fields(result_class)}
    if not isinstance(data, dict) or set(data) != names:
        found = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{path} does not hold a {result_class.__name__}: it has {found}, expected {sorted(names)}")
    for field in fields(result_class):
        if data[field.name] is None and field.type in (float, "float"):
            data[field.name] = math.nan
    return result_class(**data)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


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


def sha256_of(path: Path) -> str:
    """The SHA-256 of a whole file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _hash_of_ends(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        file.seek(max(file.tell(), path.stat().st_size - _HASHED_BYTES))
        digest.update(file.read())
    return digest.hexdigest()[:16]


def refuse_not_finite(weights: Mapping[str, torch.Tensor], what: str = "weights") -> None:
    """Refuse NaN and infinity among weights, as runs that diverged and rounding to float16 leave them.

    Args:
        weights: tensors by name.
        what: what they are called.

    Raises:
        ValueError: naming every such tensor and how many of its numbers are not finite.
    """
    # A sum is one pass without a temporary; only one that is not finite needs a closer look.
    suspects = {name: tensor for name, tensor in weights.items() if not torch.isfinite(tensor.sum())}
    counts = {name: tensor.numel() - int(torch.isfinite(tensor).sum()) for name, tensor in suspects.items()}
    found = [f"{count} in {name} {tuple(weights[name].shape)}" for name, count in counts.items() if count]
    if found:
        raise ValueError(f"{what} must be finite, got NaN or infinity: {', '.join(found)}")
