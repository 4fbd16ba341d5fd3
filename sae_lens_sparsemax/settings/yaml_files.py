"""Reading YAML strictly: numbers as people write them, no key given twice, one sentence per mistake.

A file may name another beside it as its `base:`, whose settings it extends group by group.

But: no tags, no Python objects, keys are text, and YAML 1.2's scalars rather than those of 1.1: `no` and `2024-05-01`
are text. What nobody writes by hand (half a megabyte, a hundred levels, anchors that multiply) is refused at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sae_lens_sparsemax.settings.sentences import must_be, shown, similar_path
from sae_lens_sparsemax.settings.values import expanded

# Read within a second.
_MOST_BYTES = 2**18
_MOST_VALUES = 10_000
_MOST_LEVELS = 64
_TOO_DEEP = f"there are more than {_MOST_LEVELS} groups or lists in each other"


class _Plain(yaml.SafeLoader):
    """A SafeLoader that refuses tags, keys that are no text or repeated, and what is too large or too deep.

    Aliases are counted as what they stand for, so that a few lines cannot become millions of values.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._level = self._deepest = self._n_values = 0
        self._sizes: dict[yaml.Node, tuple[int, int]] = {}
        """Values in a node, and levels below it."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > _MOST_LEVELS:  # the scanner looks far ahead
            raise ValueError(_TOO_DEEP)
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event, outer, before = self.peek_event(), self._deepest, self._n_values
        if getattr(event, "tag", None) is not None:
            raise _at(event, f"a tag such as {event.tag.removeprefix('tag:yaml.org,2002:'):.40} is not read")
        if isinstance(event, yaml.ScalarEvent) and (event.value and not _is_text(event.value)):
            raise _at(event, f"{shown(event.value)} holds a character that is none (a null or half of one)")
        node: Any = None
        self._level += 1
        self._deepest = self._level
        self._n_values += 1
        if self._level <= _MOST_LEVELS:
            node = super().compose_node(parent, index)
            if isinstance(event, yaml.AliasEvent):
                if node not in self._sizes:
                    raise _at(event, f"*{shown(event.anchor)[1:-1]} holds itself")
                n_values, levels = self._sizes[node]
                self._n_values += n_values
                self._deepest += levels
        if self._deepest > _MOST_LEVELS:
            raise ValueError(_TOO_DEEP)
        if self._n_values > _MOST_VALUES:
            raise _at(event, f"there are more than {_MOST_VALUES:,} values")
        self._sizes[node] = (self._n_values - before, self._deepest - self._level)
        self._level -= 1
        self._deepest = max(outer, self._deepest)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _at(key, "a key is no single value")
            if key.value in seen:
                raise _at(key, f"the key {shown(key.value)} is given twice")
            seen.add(key.value)
            if not key.tag.endswith(":merge"):
                key.tag = "tag:yaml.org,2002:str"
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put in what `<<` names: a group's own values win, then those named first; PyYAML mixes them up."""
        own, merged = {}, {}
        for key, value in node.value:
            if not key.tag.endswith(":merge"):
                own[key.value] = (key, value)
                continue
            for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(each, yaml.MappingNode):
                    raise _at(each, "<< is not followed by groups of keys")
                self.flatten_mapping(each)
                for inner_key, inner in each.value:
                    merged.setdefault(inner_key.value, (inner_key, inner))
        node.value = list({**merged, **own}.values())


class _StrictLoader(_Plain):
    """Reads 4e-4 as a number and `no` as text, as YAML 1.2 does."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  as the base class has it


class _TextLoader(_Plain):
    """Reads every single value as text."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  as the base class has it


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes where YAML 1.1 or `_StrictLoader` would read something else, such as 1e3."""


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _at(where: Any, problem: str) -> ValueError:
    return ValueError(f"{problem} (line {where.start_mark.line + 1})")


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    try:
        return int(loader.construct_scalar(node).replace("_", ""))
    except ValueError:  # thousands of digits
        raise _at(node, f"the number {shown(node.value)} is too long") from None


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    for _class in (_StrictLoader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _number)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML (or JSON) file that holds one mapping, on top of the file that it names as `base`.

    Raises:
        ValueError: The file does not exist, is not valid YAML, repeats a key, holds no mapping, or is its own base.
    """
    return _with_base(expanded(path), ())


def _with_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ValueError(f"base must be another file, got {shown(str(path))}, which extends itself")
    if len(above) >= _MOST_LEVELS:
        raise ValueError(f"base must name at most {_MOST_LEVELS} files one after another, got more in {above[0]}")
    values = _one_file(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise must_be("base", f"the name of a file beside {path}", base)
    return merged(_with_base(path.parent / expanded(base), (*above, path.resolve())), values)


def _one_file(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):  # noqa: PTH113  also of names that no file can have
        raise ValueError(f"{no_file(path)}{similar_yaml(path)}.")
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError(f"{path} must be a file of settings of at most {_MOST_BYTES:,} bytes, got more")
        content = yaml.load(text, Loader=_StrictLoader)
    except OSError as error:
        raise ValueError(f"{path} could not be read: {error.strerror}.") from error
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{path} is not a UTF-8 text file: {str(error).splitlines()[0]}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {_one_line(error)}.") from error
    except ValueError as error:
        raise ValueError(f"In {path} {error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, got {shown(content)}")
    return content


def merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `more`; groups that are in both are merged, anything else is replaced."""
    result = dict(values)
    for key, value in more.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def yaml_text(values: Mapping[str, Any]) -> str:
    """Settings as the text of a file that `read_yaml` reads as the same values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_value(text: str) -> Any:
    """Read one value from the command line as YAML: `32`, `4e-4`, `null`, `[0, 2]`, `relu`.

    Raises:
        ValueError: `text` is not valid YAML.
    """
    return _parse(text, _StrictLoader)


def parse_texts(text: str) -> Any:
    """Read a list of texts from the command line, `[0, 7]` as two texts; a single word is one text.

    Raises:
        ValueError: `text` is not valid YAML.
    """
    read = _parse(text, _TextLoader) if text.lstrip().startswith("[") else text
    return [read] if isinstance(read, str) else read


def _parse(text: str, loader: Any) -> Any:
    try:
        return yaml.load(str(text), Loader=loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{shown(text)} is not valid YAML: {_one_line(error)}.") from error
    except ValueError as error:
        raise ValueError(f"In {shown(text)} {error}.") from error


def similar_yaml(path: Path) -> str:
    """A hint at a file beside `path` whose name is nearly its, or ""."""
    return similar_path(path, lambda entry: entry.suffix in {".yaml", ".yml", ".json"} and entry.is_file())


def no_file(path: Path | str, wanted: str = "file") -> str:
    """What is wrong with a path that is none of a file: nothing is there, or a folder."""
    is_folder = os.path.isdir(path)  # noqa: PTH112  also of names that no folder can have
    return f"{shown(str(path))} is a folder, no {wanted}" if is_folder else f"There is no {wanted} {shown(str(path))}"


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)
