"""Files and directories that appear whole or not at all, whatever kills the process writing them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to the file `path`; a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _flush(path.parent)


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
