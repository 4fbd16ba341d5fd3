"""Reading YAML strictly: numbers as people write them, no key given twice, one sentence per mistake.

But: no tags, no Python objects; only what ``yaml.SafeLoader`` allows.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sae_lens_sparsemax.settings.nearest import nearest


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses repeated keys and reads 4e-4 as a number, as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ValueError(f"the key {key!r} is given twice (line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1, which PyYAML follows, wants a dot and a signed exponent in a float: 4e-4 would be text.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML (or JSON) file that holds one mapping.

    Raises:
        ValueError: the file does not exist, is not valid YAML, repeats a key, or holds no mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}{_similar_file(path)}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {_one_line(error)}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file: {error}.") from error
    except ValueError as error:
        raise ValueError(f"In {path} {error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold 'key: value' lines, but its content is {content!r:.80}.")
    return content


def parse_value(text: str) -> Any:
    """Read one value from the command line as YAML: ``32``, ``4e-4``, ``null``, ``[0, 2]``, ``relu``."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is not valid YAML: {_one_line(error)}.") from error


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in {".yaml", ".yml", ".json"}]
    similar = nearest(path.name, names)
    return f"; did you mean {str(path.parent / similar)!r}" if similar else ""


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)
