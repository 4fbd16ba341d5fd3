"""What one table or figure needs: SAEs to train, what to measure on them, and what the paper says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sae_lens_sparsemax.compare.paper.columns import check_columns
from sae_lens_sparsemax.compare.suggest_k import matching_k
from sae_lens_sparsemax.evaluation.settings import TextSuiteSettings, VisionSuiteSettings
from sae_lens_sparsemax.settings.checking import build, convert, plain
from sae_lens_sparsemax.settings.command_line import apply_overrides
from sae_lens_sparsemax.settings.recipes import find_recipe
from sae_lens_sparsemax.settings.sentences import must_be, must_be_one_of
from sae_lens_sparsemax.settings.values import refuse_repeated
from sae_lens_sparsemax.settings.yaml_files import merged, read_yaml
from sae_lens_sparsemax.training.config_file import config_from_values, plain_values, sae_class

MATCH = "match"
"""Key of an SAE in a recipe: the SAE whose mean L0 becomes this one's `k`."""


@dataclass(frozen=True)
class Recipe:
    """A table or figure of the paper as settings.

    A YAML file has these fields as keys, and `base`, the name of a file beside it whose settings it extends, group
    by group; what is under `small` then replaces the full-size settings where that form is asked for.

    Raises:
        ValueError: a name that does not exist, or settings of a training or a suite that are not valid.
    """

    title: str
    """What of the paper it is."""
    suite: Literal["text", "vision"]
    """What measures the SAEs."""
    train: dict[str, Any]
    """Settings of `sparsemax-sae train` that all SAEs share."""
    saes: dict[str, dict[str, Any]]
    """Settings of the SAE, or of its training under `train`, by name."""
    evaluate: dict[str, Any]
    """Settings of the suite."""
    arms: list[str]
    """The SAEs that are compared, in the order of the rows."""
    groups: list[str]
    """Metric groups of the suite that are measured; none for all."""
    columns: dict[str, str]
    """Heading to the dotted name of a measure, such as `images.geometry.cknna_recon`."""
    paper: dict[str, list[float]] = field(default_factory=dict)
    """The paper's rows, of `paper_columns`."""
    paper_columns: list[str] = field(default_factory=list)
    """Headings of the paper's rows; by default those of `columns`."""
    average_of: list[str] = field(default_factory=list)
    """Recipes beside this one, of the same arms and columns, whose rows are averaged instead of measuring anything."""
    notes: str = ""
    """How to read it: what the paper leaves open, and where it contradicts itself or its code."""
    output_path: str = "output/paper"
    """Folder for SAEs, which tables share, and results."""

    def __post_init__(self) -> None:
        refuse_repeated("arms", self.arms)
        for name in self.arms:
            if name not in self.saes:
                raise must_be_one_of("arms", name, self.saes)
        for name, sae in self.saes.items():
            if sae.get(MATCH) is not None and str(sae[MATCH]) not in self.saes:
                raise must_be_one_of(f"saes.{name}.match", sae[MATCH], self.saes)
        width = len(self.paper_columns or self.columns)
        for name, row in self.paper.items():
            if len(row) != width:
                raise ValueError(f"paper.{name} must hold {width} values, one for each column, got {len(row)}")
        for name in dict.fromkeys(each for arm in self.arms for each in self._matched(arm)):
            # A mean is hardly ever whole, so neither is the k that is tried here.
            config_from_values(self.training(name, k=1.5 if self.saes[name].get(MATCH) else None))
        check_columns(self.columns, self.groups, self.measured)

    @property
    def measured(self) -> TextSuiteSettings | VisionSuiteSettings:
        """`evaluate` as the suite's own settings, not completed by an SAE's metadata."""
        return build(_suite_settings(self.suite), self.evaluate, "evaluate")

    def _matched(self, name: str) -> list[str]:
        """An SAE, the one whose L0 it matches, the one whose L0 that matches, and so on."""
        found = [name]
        while self.saes[found[-1]].get(MATCH) is not None:
            match = str(self.saes[found[-1]][MATCH])
            if match in found:
                raise must_be(f"saes.{found[-1]}.match", "an SAE that does not in turn match this one's L0", match)
            found.append(match)
        return found

    def training(self, name: str, k: float | None = None) -> dict[str, Any]:
        """Settings for `sparsemax-sae train` of one SAE, but for its folder, which is named after them.

        `k` is needed for those that match another's L0.
        """
        own = {key: value for key, value in self.saes[name].items() if key not in (MATCH, "train")}
        if self.saes[name].get(MATCH) is not None:
            assert k is not None
            own["k"] = matching_k(str(own.get("architecture")), k)
        values = merged(self.train, self.saes[name].get("train", {}))
        sae = {**values.get("sae", {}), **own}
        if own.get("architecture", "sparsemax") != "sparsemax" and "target_l0" not in own:
            # What all SAEs share may hold fields of the default architecture alone.
            sae.pop("target_l0", None)
        # A part of the names of the folders that there are.
        return {**values, "sae": sae, "output_path": "unused"}


def load_recipe(path: str | Path, *, small: bool = False, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file, or the name of a recipe.
        small: Whether the small form is wanted.
        overrides: Dotted key to value, set last.

    Raises:
        ValueError: Unreadable file, no small form, or whatever `Recipe` refuses; the message names the file.
    """
    path = find_recipe(path, "reproduce")
    values = read_yaml(path)
    little = values.pop("small", None)
    if small:
        if little is None:
            raise ValueError(f"{path} must have a group 'small' for --small, got none")
        values = merged(values, little)
    try:
        return build(Recipe, _words_read(apply_overrides(values, overrides or {})))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_with_parts(
    path: str | Path, *, small: bool = False, overrides: Mapping[str, Any] | None = None
) -> tuple[Recipe, list[Recipe]]:
    """Read a recipe as `load_recipe` does, and those that are measured for it: itself, or the parts that it averages.

    Raises:
        ValueError: besides, a part that has other arms or columns, or averages parts of its own.
    """
    path = find_recipe(path, "reproduce")
    recipe = load_recipe(path, small=small, overrides=overrides)
    shared = {key: value for key, value in (overrides or {}).items() if key != "average_of"}
    parts = [load_recipe(path.parent / name, small=small, overrides=shared) for name in recipe.average_of]
    for name, part in zip(recipe.average_of, parts, strict=True):
        same = set(part.arms) == set(recipe.arms) and list(part.columns.items()) == list(recipe.columns.items())
        if part.average_of or not same:
            condition = "recipes of the same arms and the same columns in the same order, which average no others"
            raise must_be(f"{path}: average_of", condition, name)
    return recipe, parts or [recipe]


def _words_read(values: dict[str, Any]) -> dict[str, Any]:
    """What the command line gave for trainings and the suite, read as their own fields ask."""
    read: dict[str, Any] = {}
    if isinstance(values.get("train"), Mapping):
        read["train"] = plain_values(values["train"])
    if isinstance(values.get("evaluate"), Mapping):
        read["evaluate"] = plain(_suite_settings(values.get("suite")), values["evaluate"])
    if isinstance(values.get("saes"), Mapping):
        read["saes"] = {
            name: _sae_read(sae, read.get("train", {}), name) if isinstance(sae, Mapping) else sae
            for name, sae in values["saes"].items()
        }
    return {**values, **read}


def _sae_read(values: Mapping[str, Any], shared: Mapping[str, Any], name: str) -> dict[str, Any]:
    own = convert(values.get("train", {}), dict, f"saes.{name}.train")
    trained = plain_values(merged(shared, own))
    read = plain(sae_class(values), values)
    return {**read, "train": {key: trained[key] for key in own}} if own else read


def _suite_settings(suite: Any) -> type[TextSuiteSettings] | type[VisionSuiteSettings]:
    return TextSuiteSettings if suite == "text" else VisionSuiteSettings
