"""Reading a comparison's settings from YAML; a key that does not exist is an error that names the nearest."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from sae_lens_sparsemax.compare.config import Arm, CompareConfig, TextData
from sae_lens_sparsemax.compare.image_settings import ImageData, ImageSettings
from sae_lens_sparsemax.settings.nearest import unknown_name


def config_from_yaml(path: str | Path, overrides: Mapping[str, Any] | None = None) -> CompareConfig:
    """
    Read a YAML file; `overrides` replace entries by dotted key, as in `{"training_data.path": "x.jsonl"}`.

    Values of overrides that are strings are read as YAML. Raises `ValueError` for unknown keys and for values
    that `CompareConfig` refuses.
    """
    data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a YAML mapping, but holds {type(data).__name__}")
    for dotted, value in (overrides or {}).items():
        *parents, last = dotted.split(".")
        target = data
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ValueError(f"{dotted} cannot be set: {parent} is not a mapping")
        target[last] = yaml.safe_load(value) if isinstance(value, str) else value
    return config_from_dict(data)


def config_from_dict(data: Mapping[str, Any]) -> CompareConfig:
    """Build a config from plain data, as YAML gives it; raises `ValueError` as `config_from_yaml` does."""
    settings = {key: _numbers(value) for key, value in data.items()}
    if "arms" not in settings:
        raise ValueError("the configuration has no arms: list at least one architecture to train")
    settings["arms"] = [_build(Arm, arm, "arms") for arm in settings["arms"]]
    if "training_data" in settings:
        settings["training_data"] = _build(TextData, settings["training_data"], "training_data")
    if "evaluation_data" in settings:
        settings["evaluation_data"] = {
            name: _build(TextData, text, f"evaluation_data.{name}")
            for name, text in settings["evaluation_data"].items()
        }
    if settings.get("images") is not None:
        settings["images"] = _image_settings(settings["images"])
    return _build(CompareConfig, settings, "the configuration")


def _image_settings(data: Any) -> ImageSettings:
    if isinstance(data, Mapping):
        sets = {name: data[name] for name in ("training", "evaluation") if name in data}
        data = {**data, **{name: _build(ImageData, value, f"images.{name}") for name, value in sets.items()}}
    return _build(ImageSettings, data, "images")


def _build(config_class: type, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a mapping, got {data!r}")
    valid = {f.name: f for f in fields(config_class)}
    for key in data:
        if key not in valid:
            raise ValueError(unknown_name("setting", key, valid, where))
    required = {name for name, f in valid.items() if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - set(data)):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return config_class(**data)


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a string; turn such strings into floats, at any depth."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value
