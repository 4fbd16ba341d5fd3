"""Files that are written whole or not at all, by one process at a time; a full disk is said in one sentence."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHECKSUMS_FILENAME = "checksums.json"

# What `torch.save` says of a full disk.
_TORCH_SAYS = ("PytorchStreamWriter", "inline_container", "iostream error")

_TRIES = 100

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
    for tries_left in reversed(range(_TRIES)):
        try:
            with _folder(Path(folder)), tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(2**20))
                probe.flush()
                os.fsync(probe.fileno())
            return
        except (OSError, ValueError) as error:  # ValueError: a path that holds a null
            # Another process that asks the same of a new folder takes away what it made, perhaps in between.
            if isinstance(error, (FileNotFoundError, FileExistsError)) and tries_left:
                continue
            why = getattr(error, "strerror", None) or str(error)
            raise ValueError(f"{name} must be a place that can be written to, got {str(folder)!r}: {why}") from error


def refuse_to_replace(path: Path, is_own: Callable[[Path], bool]) -> None:
    """See that nothing but an earlier result is replaced at `path`, before the work whose result goes there.

    Args:
        path: file or folder that will be written; need not exist.
        is_own: whether what is there is such a result.

    Raises:
        ValueError: it is something else, and not empty.
    """
    try:
        is_free = not path.exists() or (not any(path.iterdir()) if path.is_dir() else not path.stat().st_size)
        if is_free or is_own(path):
            return
    except (OSError, ValueError):  # it cannot be read as a result
        pass
    raise ValueError(f"{str(path)!r} holds something else and would be replaced; name another --output_path.")


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
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another's `require_writable` took away the folder that it had made
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
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
def writing(path: Path | str) -> Iterator[None]:
    """Inside the block `path` is written; a full disk and the like are said as one sentence that names it.

    Python's own errors of writes name no file, and those of safetensors and `torch.save` are not even of its types.

    Raises:
        OSError: the system could not write.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(phrase in str(error) for phrase in _TORCH_SAYS):
            raise
        if isinstance(error, OSError) and error.errno is None:  # said already, by a block inside this one
            raise
        name = getattr(error, "filename", None) or str(path)
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OSError(f"{name!r} could not be written: {why}") from error


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
    new, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not path.exists():  # killed between the two renames below
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        with _scratch(new):
            yield new
            _flush_all(new)
            # A directory that is not empty cannot be renamed over; between these two steps `path` does not exist.
            if path.exists():
                path.rename(old)
            new.rename(path)
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _scratch(folder: Path) -> Iterator[None]:
    """Inside the block `folder` is there and begins empty; afterwards it is gone, if it was not renamed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush_all(folder: Path) -> None:
    for file in (*sorted(folder.rglob("*")), folder):
        _flush(file)


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
    new = path.with_name(f".{path.name}.new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield new
            _flush(new)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
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


@contextmanager
def added_files(path: Path | str) -> Iterator[Path]:
    """A new, empty folder to fill, whose files and folders are moved into `path` when the block ends without an error.

    A full disk or an interruption leaves what was in `path` as it was; other files in it stay.

    Args:
        path: the folder that the files are for; made if missing.

    Yields:
        The folder to write into.
    """
    path = Path(path)
    new = path / ".new"
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        with _scratch(new):
            yield new
            _flush_all(new)
            for file in sorted(new.iterdir()):
                if (there := path / file.name).is_dir():  # over which nothing can be renamed
                    shutil.rmtree(there)
                file.replace(there)
        _flush(path)


def save_atomically(path: str | Path, save: Callable[[Path], tuple[Path, Path]]) -> tuple[Path, Path]:
    """Run `save(folder)`, which returns the paths of weights and config, in `added_files(path)`.

    Returns:
        The paths of weights and config in `path`.
    """
    with added_files(path) as new:
        weights, config = save(new)
    (Path(path) / CHECKSUMS_FILENAME).unlink(missing_ok=True)  # of what was there before
    return Path(path) / weights.name, Path(path) / config.name
