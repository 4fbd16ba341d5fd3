"""What was measured beside what the paper says, as Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lens_sparsemax.compare.paper.recipe import Recipe
from sae_lens_sparsemax.display.tables import csv_table, markdown_table
from sae_lens_sparsemax.files import atomic_write_text

Rows = dict[str, list[float | None]]
"""Values of the columns by SAE; None where something could not be measured."""


def flat(results: Mapping[str, Any]) -> dict[str, Any]:
    """Every number of a suite's groups by its dotted name.

    Entries of masked classification get the name `zero_shot.on_5.oracle.top.classes`: switch and n, whose class
    decides, which concepts, and how accuracy is averaged.
    """
    found: dict[str, Any] = {}

    def walk(place: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{place}.{key}" if place else key, inner)
        elif place.endswith(".masked"):
            for entry in value:
                name = f"{entry['switch']}_{entry['n']}.{entry['mask']}.{entry['concepts']}"
                walk(f"{place.removesuffix('.masked')}.{name}", entry["accuracy"])
        else:
            found[place] = value

    walk("", results)
    return found


def row(recipe: Recipe, groups: Mapping[str, Any]) -> list[float | None]:
    """The values of a recipe's columns for one SAE.

    Raises:
        ValueError: A column names no measure, although its group was measured.
    """
    numbers = flat(groups)
    values: list[float | None] = []
    for column, name in recipe.columns.items():
        group = next((key for key in groups if name.startswith(f"{key}.")), None)
        measured = group is not None and "not_measured" not in groups[group]
        if measured and name not in numbers:
            raise ValueError(f"The column {column!r} asks for {name!r}, which is not among the measures of {group!r}.")
        values.append(numbers.get(name))
    return values


def write_table(recipe: Recipe, rows: Rows, folder: Path, command: str) -> Path:
    """Write `table.md` and `table.csv` and return the first."""
    header = ["SAE", *recipe.columns]
    csv = csv_table(dict(zip(header, [name, *values], strict=True)) for name, values in rows.items())
    atomic_write_text(folder / "table.csv", csv)
    shown = [[name, *map(_cell, values, recipe.columns.values())] for name, values in rows.items()]
    lines = [f"# {recipe.title}", "", f"`{command}`", "", "## Measured", ""]
    lines += [markdown_table(header, shown)]
    if recipe.paper:
        said = [[name, *(f"{value:g}" for value in values)] for name, values in recipe.paper.items()]
        lines += ["", "## The paper", "", markdown_table(["SAE", *(recipe.paper_columns or recipe.columns)], said)]
    if recipe.notes:
        lines += ["", recipe.notes.strip()]
    table = folder / "table.md"
    atomic_write_text(table, "\n".join([*lines, ""]))
    return table


def averaged(tables: Sequence[Rows]) -> Rows:
    """The mean over tables of every value, for the SAEs that all of them have; None where one has none."""
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: [_mean(values) for values in zip(*(table[name] for table in tables), strict=True)] for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _cell(value: float | None, name: str) -> float | str | None:
    """A value as it is shown; accuracies in per cent, as in the paper."""
    return f"{100 * value:.1f}" if value is not None and name.endswith((".classes", ".images")) else value
