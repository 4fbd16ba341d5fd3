"""Settings given on the command line: reading `--dotted.key value`, and writing the help from the dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from simple_parsing.docstring import get_attribute_docstring

from sae_lens_sparsemax.settings.checking import Word, hints_of
from sae_lens_sparsemax.settings.sentences import Mistake, nearest, new_name, shown


class Group(NamedTuple):
    """Fields of a dataclass as options of a command."""

    title: str
    """Heading in the help."""
    cls: type
    """A dataclass."""
    prefix: str = ""
    """Dotted place of the group, such as `logger`."""


def split_overrides(
    arguments: Sequence[str], own_options: Collection[str], groups: Iterable[Group] = ()
) -> tuple[list[str], dict[str, Any]]:
    """Separate `--sae.target_l0 32`, `--lr=1e-3`, `--streaming` and `--set key=value` from a command's own words.

    Args:
        arguments: Command-line words.
        own_options: Options of the command itself, which stay where they are.
        groups: Settings of the command, of which true-or-false fields need no value.

    Returns:
        The remaining words, and dotted key to value, as it was typed: the dataclass says how it is read.

    Raises:
        ValueError: An option without a value, or one that is spelt with hyphens or by the name of an earlier version.
    """
    keys = {_dotted(group, field): hint for group in groups for field, hint in _hints(group).items()}
    rest: list[str] = []
    overrides: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("--") or name in own_options:
            rest.append(word)
            continue
        key = name.removeprefix("--")
        if key == "set":
            setting = value if equals else words.pop(0) if words else ""
            key, equals, value = setting.partition("=")
            if not equals or not key:
                raise ValueError(f"--set must be key=value (--set sae.target_l0=32), got {setting!r}")
        if not all(key.split(".")):
            raise ValueError(f"an option must have a name, as in --lr or --sae.target_l0, got {shown(word)}")
        if renamed := new_name(key, None, [option.removeprefix("--") for option in own_options]):
            raise Mistake(f"--{key}", f"is now called --{renamed[1]}")
        if "-" in key.partition(".")[0]:
            raise ValueError(f"--{key} must be spelt with underscores: --{key.replace('-', '_')}")
        if clash := next((each for each in overrides if f"{each}.".startswith(f"{key}.")), None):
            raise ValueError(
                f"--{key} must be given once, got {'it twice' if clash == key else f'--{clash} before it'}"
            )
        if equals:
            overrides[key] = Word(value)
        elif words and not words[0].startswith("--") and (keys.get(key) is not bool or _is_truth_value(words[0])):
            overrides[key] = Word(words.pop(0))
        elif keys.get(key) is bool:
            overrides[key] = True
        else:
            near = nearest(name, own_options) if key not in keys else None
            hint = f"; did you mean {near}?" if near else f": {name} VALUE or {name}=VALUE"
            raise ValueError(f"{name} needs a value{hint}")
    return rest, overrides


def apply_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with each dotted key of `overrides` set; groups that are absent are created.

    Raises:
        ValueError: A dotted key goes through a key that holds a single value.
    """
    result = dict(values)
    for dotted, value in overrides.items():
        *groups, last = dotted.split(".")
        target = result
        for depth, group in enumerate(groups):
            inner = target.get(group)
            if inner is not None and not isinstance(inner, Mapping):
                holder = ".".join(groups[: depth + 1])
                raise ValueError(f"{holder} must be a group of keys for {dotted} to be set, got {shown(inner)}")
            target[group] = dict(inner or {})
            target = target[group]
        target[last] = value
    return result


def settings_help(groups: Iterable[Group]) -> str:
    """The part of a command's help that tells the fields of dataclasses, each with its docstring and default."""
    texts = []
    for group in groups:
        # Each has a parser of its own, since the groups of one command may share names.
        parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
        section = parser.add_argument_group(group.title)
        for name, cls, field, hint in _options(group.cls, group.prefix):
            text = _help(cls, field).replace("%", "%%")
            section.add_argument(f"--{name}", metavar=_metavar(hint), help=text)
        texts.append(parser.format_help())
    return "\n".join(texts)


def _options(cls: type, place: str) -> Iterator[tuple[str, type, dataclasses.Field[Any], Any]]:
    """Every key that can be given, with its dataclass, field and hint; groups with their own title are left out."""
    hints = hints_of(cls)
    for field in dataclasses.fields(cls):
        hint = _bare(hints[field.name])
        name = f"{place}.{field.name}" if place else field.name
        inner = get_args(hint)[1] if get_origin(hint) is dict and get_args(hint) else hint
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            if place == "" and field.name not in ("images", "logger"):
                yield from _options(inner, name if inner is hint else f"{name}.NAME")
        elif field.init and not isinstance(hint, TypeVar):
            yield name, cls, field, hint


def _is_truth_value(word: str) -> bool:
    return word.lower() in ("true", "false")


def _dotted(group: Group, field: str) -> str:
    return f"{group.prefix}.{field}" if group.prefix else field


def _hints(group: Group) -> dict[str, Any]:
    return hints_of(group.cls)


def _help(cls: type, field: dataclasses.Field[Any]) -> str:
    text = describe_field(cls, field.name).rstrip(".")
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is None or default is dataclasses.MISSING or default in ("", [], {}) or isinstance(default, dict):
        return text
    return f"{text} (default {str(default).lower() if isinstance(default, bool) else default})".strip()


def describe_field(cls: type, name: str) -> str:
    """What a field of a dataclass is, from the docstring below it or the `Args:` of its class; "" if neither says."""
    for owner in cls.__mro__:
        if name in getattr(owner, "__annotations__", {}):
            found = get_attribute_docstring(owner, name)
            return " ".join((found.docstring_below or found.desc_from_cls_docstring or found.comment_inline).split())
    return ""


def _bare(hint: Any) -> Any:
    """The hint without `None`; the first member of a union."""
    return next((each for each in get_args(hint) if each is not type(None)), hint) if _is_union(hint) else hint


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _metavar(hint: Any) -> str:
    hint = _bare(hint)
    if get_origin(hint) is Literal:
        return "{" + ",".join(str(each) for each in get_args(hint)) + "}"
    if get_origin(hint) in (list, tuple):
        return "[…]"
    if get_origin(hint) is dict:
        return "{…}"
    return {int: "N", float: "X", bool: "[true|false]", str: "TEXT"}.get(hint, "VALUE")
