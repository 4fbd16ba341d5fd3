"""What files hold: strict JSON, tensors, checksums. A damaged file is said in one sentence that names it."""

import hashlib
import json
import math
import os
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sae_lens_sparsemax.files.whole_files import CHECKSUMS_FILENAME, atomic_file, atomic_write_text

T = TypeVar("T")

_CHECKSUM = "sha256"
_LONGEST = 400
_HASHED_BYTES = 16 * 2**20
# What readers of files raise when these hold something else than they expect.
_READERS_RAISE = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError, EOFError,
    AssertionError, SafetensorError, pickle.UnpicklingError,
)  # fmt: skip


class _Damaged(ValueError):
    """Said already, with the name of the file."""


@contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """Inside the block a file or folder is read; whatever its readers raise is said as one sentence that names it.

    Raises:
        ValueError: it is damaged, or cannot be read.
    """
    try:
        yield
    except _Damaged:
        raise
    except _READERS_RAISE as error:
        raise _Damaged(f"{str(what)!r} is damaged or cannot be read: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What an error of another library says, in one line that is not too long."""
    if isinstance(error, KeyError):
        return f"it has no {str(error)[:_LONGEST]}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 1]}…"


def read_object(path: Path | str) -> dict[str, Any]:
    """The JSON object in a file; if it has a checksum of itself (`sealed`), that is verified and taken out.

    Raises:
        ValueError: there is no such file, it is no JSON, or has changed since it was written.
    """
    with reading(path):
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it must hold a JSON object, got {type(values).__name__}")
        if _CHECKSUM in values and values.pop(_CHECKSUM) != digest_of(values).hexdigest():
            raise ValueError("it has changed since it was written (its SHA-256 is another)")
    return values


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with a checksum of itself, which `read_object` verifies."""
    kept: dict[str, Any] = _plain(dict(values))
    return kept | {_CHECKSUM: digest_of(kept).hexdigest()}


def digest_of(values: Any) -> Any:
    """The SHA-256 of plain data, whatever the order of its keys, as `hashlib` gives it; what is no JSON counts as text.

    Names of folders and what is kept of earlier runs are made of it: it must stay the same.
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())


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
    data = read_object(path)
    names = {field.name for field in fields(result_class)}
    if set(data) != names:
        raise ValueError(
            f"{path} does not hold a {result_class.__name__}: it has {sorted(data)}, expected {sorted(names)}"
        )
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


def save_tensors(
    tensors: Mapping[str, torch.Tensor], path: Path | str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and texts beside them to a safetensors file, with a checksum of both."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    beside = dict(metadata or {})
    with atomic_file(path) as new:
        save_file(kept, new, beside | {_CHECKSUM: _sha256_of_tensors(kept, beside)})


def read_tensors(
    path: Path | str, device: str | torch.device = "cpu", beside: Collection[str] = ()
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the texts beside them; a checksum that `save_tensors` wrote is verified.

    Args:
        path: the file.
        device: where the tensors go.
        beside: names of the texts that there may be; one that is damaged might be that of the checksum.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    with reading(path), safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = metadata.pop(_CHECKSUM, None)
        if unknown := metadata.keys() - {*beside, "format"}:
            raise ValueError(f"it holds {min(unknown)[:_LONGEST]!r}, which does not belong to it")
        if written not in (None, _sha256_of_tensors(tensors, metadata)):
            raise ValueError("it has changed since it was written (its SHA-256 is another)")
    return {name: tensor.to(device) for name, tensor in tensors.items()}, metadata


def _sha256_of_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    digest = digest_of(dict(metadata))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensor_shapes(path: Path | str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a safetensors file, by name.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    with reading(path), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def write_checksums(folder: Path, again: bool = False) -> None:
    """Write the SHA-256 of every file in a folder and the folders in it, as its last file.

    Args:
        folder: where the files are.
        again: of those files alone whose sums are there already, if any are; see `verify_checksums`.
    """
    earlier = folder / CHECKSUMS_FILENAME
    names = read_object(earlier) if again and earlier.is_file() else _files_in(folder)
    sums = {name: sha256_of(folder / name) for name in sorted(names)}
    atomic_write_text(folder / CHECKSUMS_FILENAME, json.dumps(sums, indent=1) + "\n")


def verify_checksums(folder: Path, fewer: bool = False) -> None:
    """Raise a ValueError unless the files of a folder are those whose sums were written, if any were.

    What lies beside them, such as results of `evaluate`, was put there since and is no damage.

    Args:
        folder: where the files are.
        fewer: whether some of them may be gone.
    """
    path = folder / CHECKSUMS_FILENAME
    if not path.is_file():
        return
    for name, checksum in sorted(read_object(path).items()):
        is_there = not {"..", "/"} & {*Path(name).parts} and (folder / name).exists()
        if fewer and not is_there:
            continue
        if not is_there:
            wrong = "is missing"
        elif not (folder / name).is_file() or sha256_of(folder / name) != checksum:
            wrong = "has changed since it was written (its SHA-256 is another)"
        else:
            continue
        meant = f"; if that is meant, delete {CHECKSUMS_FILENAME} there" if fewer else ""
        raise ValueError(f"{str(folder)!r} is damaged: {name!r} {wrong}{meant}.")


def _files_in(folder: Path) -> set[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return {*files} - {CHECKSUMS_FILENAME}


def file_facts(paths: Iterable[str | None]) -> dict[str, list[tuple[str, int, str]]]:
    """
    Name, size and hash of local files and of the files in local folders, by the path given.

    Part of a cache's fingerprint, so that a file that was replaced is noticed, and one that was only copied is not.
    Of large files both ends are hashed. Names that are no local path are left out.
    """
    facts = {}
    for given in paths:
        if given is not None and (path := Path(os.path.expanduser(given))).exists():  # noqa: PTH111
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
