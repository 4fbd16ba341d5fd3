"""Reading YAML strictly: numbers as people write them, no key given twice, one sentence per mistake.

A file may name another beside it as its `base:`, whose settings it extends group by group. Where a command asks for
a file, the name of a recipe that comes with the package will do.

But: no tags, no Python objects, and YAML 1.2's scalars rather than those of 1.1: `no` and `2024-05-01` are text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sae_lens_sparsemax.settings.sentences import nearest, shown

_PACKAGE = Path(__file__).parents[1]
# An installed package carries its recipes; in a clone they lie beside it.
RECIPES = next((folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()), None)

_FOLDERS = {"train": (".", "vision"), "evaluate": ("evaluate",), "compare": ("compare",), "reproduce": ("paper",)}
"""Where the recipes of each command lie."""


class _StrictLoader(yaml.SafeLoader):
    """A SafeLoader that refuses repeated keys and reads 4e-4 as a number and `no` as text, as YAML 1.2 does."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  as the base class has it

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(f"a key is no single value (line {key_node.start_mark.line + 1})")
            if key_node.value in seen:
                raise ValueError(f"the key {key_node.value!r} is given twice (line {key_node.start_mark.line + 1})")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _number)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML (or JSON) file that holds one mapping, on top of the file that it names as `base`.

    Raises:
        ValueError: The file does not exist, is not valid YAML, repeats a key, holds no mapping, or is its own base.
    """
    return _with_base(Path(path), ())


def _with_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ValueError(f"base must be another file, got {str(path)!r}, which extends itself")
    values = _one_file(path)
    base = values.pop("base", None)
    if base is None:
        return values
    return merged(_with_base(path.parent / str(base), (*above, path.resolve())), values)


def _one_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}{_similar_file(path)}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {_one_line(error)}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not valid YAML: its groups are too deep.") from error
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
    read = _parse(text, yaml.BaseLoader) if text.lstrip().startswith("[") else text
    return [read] if isinstance(read, str) else read


def _parse(text: str, loader: Any) -> Any:
    try:
        return yaml.load(str(text), Loader=loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = _one_line(error) if isinstance(error, yaml.YAMLError) else "it cannot be read"
        raise ValueError(f"{shown(text)} is not valid YAML: {problem}.") from error


def find_recipe(name: str | Path, command: str) -> Path:
    """The file that a command was given: a path, or the name of a recipe that comes with the package.

    Args:
        name: An existing file; or a path below the folder of recipes, or its last part, with or without `.yaml`;
            the recipes of the command come before those of others.
        command: `train`, `evaluate`, `compare` or `reproduce`.

    Raises:
        ValueError: There is neither; the message names the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path
    wanted = str(name).removeprefix("configs/").removesuffix(".yaml")
    for names in (recipe_names(command), recipe_names()):
        last = {Path(each).name: each for each in names}
        found = wanted if wanted in names else last.get(wanted)
        if found is not None:
            assert RECIPES is not None
            return RECIPES / f"{found}.yaml"
    last = {Path(each).name: each for each in recipe_names(command)}
    near = nearest(wanted, last.values()) or last.get(nearest(Path(wanted).name, last) or "")
    hint = f"; did you mean {near}?" if near else _similar_file(path) or "; 'sparsemax-sae recipes' lists them"
    raise ValueError(f"There is no file and no recipe {str(name)!r}{hint}")


def recipe_names(command: str | None = None) -> list[str]:
    """Names of the recipes of a command, or of all: paths below the folder of recipes, without the ending."""
    if RECIPES is None:
        return []
    folders = _FOLDERS[command] if command else [folder for each in _FOLDERS.values() for folder in each]
    found = (path for folder in folders for path in (RECIPES / folder).glob("*.yaml"))
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in found if not path.stem.startswith("base"))


def recipe_title(name: str) -> str:
    """What a recipe is, from its first comment or its `title`."""
    assert RECIPES is not None
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    title = next((line.removeprefix("title:").strip(" \"'") for line in lines if line.startswith("title:")), None)
    return title or next((line.strip("# ") for line in lines if line.startswith("#")), "")


def _similar_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in {".yaml", ".yml", ".json"}]
    similar = nearest(path.name, names)
    return f"; did you mean {str(path.parent / similar)!r}?" if similar else ""


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)
