"""What one table or figure needs: SAEs to train, what to measure on them, and what the paper says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sae_lens_sparsemax.data.texts import TextData
from sae_lens_sparsemax.evaluation.suite.text import TextSuiteSettings
from sae_lens_sparsemax.evaluation.suite.vision_settings import VisionSuiteSettings
from sae_lens_sparsemax.settings.nearest import unknown_name
from sae_lens_sparsemax.settings.overrides import apply_overrides
from sae_lens_sparsemax.settings.values import build
from sae_lens_sparsemax.settings.yaml_reader import read_yaml
from sae_lens_sparsemax.training.config_file import config_from_values

MATCH = "match"
"""Key of an SAE in a recipe: the SAE whose mean L0 becomes this one's `k`."""


@dataclass(frozen=True)
class Recipe:
    """
    A table or figure of the paper as settings.

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
    """Metric groups of the suite that are measured."""
    columns: dict[str, str]
    """Heading to the dotted name of a measure, such as `images.geometry.cknna_recon`."""
    paper: dict[str, list[float]] = field(default_factory=dict)
    """The paper's rows, of `paper_columns`."""
    paper_columns: list[str] = field(default_factory=list)
    """Headings of the paper's rows; by default those of `columns`."""
    average_of: list[str] = field(default_factory=list)
    """Recipes beside this one whose rows are averaged instead of measuring anything."""
    notes: str = ""
    """How to read it: what the paper leaves open, and where it contradicts itself or its code."""
    output_path: str = "output/paper"
    """Folder for SAEs, which tables share, and results."""

    def __post_init__(self) -> None:
        for name in self.arms:
            if name not in self.saes:
                raise ValueError(unknown_name("SAE", name, self.saes, "arms"))
        for name, sae in self.saes.items():
            if sae.get(MATCH) is not None and sae[MATCH] not in self.saes:
                raise ValueError(unknown_name("SAE", sae[MATCH], self.saes, f"saes.{name}.match"))
        width = len(self.paper_columns or self.columns)
        for name, row in self.paper.items():
            if len(row) != width:
                raise ValueError(f"The paper's row {name!r} has {len(row)} values for {width} columns.")
        for name in self.arms:
            config_from_values(self.training(name, "unused", k=1 if self.saes[name].get(MATCH) else None))
        build(TextSuiteSettings if self.suite == "text" else VisionSuiteSettings, self.evaluate)
        if self.suite == "text":
            for name, data in self.evaluate.get("datasets", {}).items():
                build(TextData, data, f"evaluate.datasets.{name}")

    def training(self, name: str, output_path: str, k: float | None = None) -> dict[str, Any]:
        """Settings for `sparsemax-sae train` of one SAE; `k` is needed for those that match another's L0."""
        own = {key: value for key, value in self.saes[name].items() if key not in (MATCH, "train")}
        if self.saes[name].get(MATCH) is not None:
            assert k is not None
            own["k"] = round(k) if own.get("architecture") == "topk" else round(float(k), 2)
        values = merged(self.train, self.saes[name].get("train", {}))
        sae = {**values.get("sae", {}), **own}
        if own.get("architecture", "sparsemax") != "sparsemax" and "target_l0" not in own:
            # What all SAEs share may hold fields of the default architecture alone.
            sae.pop("target_l0", None)
        return {**values, "sae": sae, "output_path": output_path}


def load_recipe(path: str | Path, *, small: bool = False, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """
    Read a recipe.

    Args:
        path: YAML file.
        small: Whether the small form is wanted.
        overrides: Dotted key to value, set last.

    Raises:
        ValueError: Unreadable file, no small form, or whatever `Recipe` refuses; the message names the file.
    """
    path = Path(path)
    values = _with_base(path)
    little = values.pop("small", None)
    if small:
        if little is None:
            raise ValueError(f"{path} has no small form.")
        values = merged(values, little)
    try:
        return build(Recipe, apply_overrides(values, dict(overrides or {})))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def merged(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `more`; groups that are in both are merged, anything else is replaced."""
    result = dict(values)
    for key, value in more.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _with_base(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    base = values.pop("base", None)
    return merged(_with_base(path.parent / base), values) if base is not None else values
