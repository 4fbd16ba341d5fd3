"""Settings given on the command line, merged into the mapping of a configuration file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_lens_sparsemax.settings.yaml_reader import parse_value


def split_overrides(arguments: Sequence[str], own_options: set[str]) -> tuple[list[str], dict[str, Any]]:
    """Separate ``--sae.target_l0 32``, ``--lr=1e-3`` and ``--set key=value`` from a command's own arguments.

    Args:
        arguments: command-line words.
        own_options: long options of the command itself, which stay where they are.

    Returns:
        The remaining words, and dotted key to value, each value read as YAML.

    Raises:
        ValueError: an override without a value.
    """
    rest: list[str] = []
    overrides: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("--") or name in own_options:
            rest.append(word)
            continue
        if name == "--set":
            setting = value if equals else next(words, "")
            name, equals, value = setting.partition("=")
            if not equals or not name:
                raise ValueError(f"--set takes key=value (--set sae.target_l0=32), but {setting!r} was given.")
        elif not equals:
            value = next(words, None)
            if value is None or value.startswith("--"):
                raise ValueError(f"{word} needs a value: {word} VALUE or {word}=VALUE.")
        overrides[name.removeprefix("--").replace("-", "_")] = parse_value(value)
    return rest, overrides


def apply_overrides(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with each dotted key of ``overrides`` set; groups that are absent are created.

    Raises:
        ValueError: a dotted key goes through a key that holds a single value.
    """
    result = dict(values)
    for dotted, value in overrides.items():
        *groups, last = dotted.split(".")
        target = result
        for depth, group in enumerate(groups):
            inner = target.get(group)
            if inner is not None and not isinstance(inner, dict):
                holder = ".".join(groups[: depth + 1])
                raise ValueError(f"--{dotted} cannot be set: {holder!r} is a single value ({inner!r}).")
            target[group] = dict(inner or {})
            target = target[group]
        target[last] = value
    return result
