"""Results as plain dataclasses that save to JSON, whole or not at all."""

import json
import math
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from sae_lens_sparsemax.training.atomic import atomic_write_text

T = TypeVar("T")


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
