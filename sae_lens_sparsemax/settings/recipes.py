"""Recipes: the YAML files that come with the package, each known by its name wherever a command asks for a file."""

from __future__ import annotations

import os
from pathlib import Path

from sae_lens_sparsemax.settings.sentences import nearest
from sae_lens_sparsemax.settings.values import expanded
from sae_lens_sparsemax.settings.yaml_files import no_file, similar_yaml

_PACKAGE = Path(__file__).parents[1]
# An installed package carries its recipes; in a clone they lie beside it.
RECIPES = next((folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()), None)

_FOLDERS = {"train": (".", "vision"), "evaluate": ("evaluate",), "compare": ("compare",), "reproduce": ("paper",)}
"""Where the recipes of each command lie."""


def find_recipe(name: str | Path, command: str) -> Path:
    """The file that a command was given: a path, or the name of a recipe that comes with the package.

    Args:
        name: An existing file; or a path below the folder of recipes, or its last part, with or without `.yaml`;
            the recipes of the command come before those of others.
        command: `train`, `evaluate`, `compare` or `reproduce`.

    Raises:
        ValueError: There is neither; the message names the nearest.
    """
    if (found := _found(name, command)) is not None:
        return found
    wanted = _wanted(name)
    last = {Path(each).name: each for each in recipe_names(command)}
    near = nearest(wanted, last.values()) or last.get(nearest(Path(wanted).name, last) or "")
    hint = f"; did you mean {near}?" if near else similar_yaml(Path(name)) or "; 'sparsemax-sae recipes' lists them"
    raise ValueError(no_file(name, "file and no recipe") + hint)


def is_recipe(name: str, command: str) -> bool:
    """Whether `find_recipe` finds a file."""
    return _found(name, command) is not None


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


def _found(name: str | Path, command: str) -> Path | None:
    if os.path.isfile(file := expanded(name)):  # noqa: PTH113  also of names that no file can have
        return file
    wanted = _wanted(name)
    for names in (recipe_names(command), recipe_names()):
        last = {Path(each).name: each for each in names}
        recipe = wanted if wanted in names else last.get(wanted)
        if recipe is not None:
            assert RECIPES is not None
            return RECIPES / f"{recipe}.yaml"
    return None


def _wanted(name: str | Path) -> str:
    """The name of a recipe as `recipe_names` gives it, or its last part."""
    return str(name).removeprefix("configs/").removesuffix(".yaml")
