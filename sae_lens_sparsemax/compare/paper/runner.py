"""One table or figure: train what is missing, measure what is not finished, write the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sae_lens_sparsemax.compare.config import fingerprint
from sae_lens_sparsemax.compare.paper.recipe import Recipe, load_recipe
from sae_lens_sparsemax.compare.paper.saes import trained_sae
from sae_lens_sparsemax.compare.paper.table import Rows, averaged, row, write_table
from sae_lens_sparsemax.evaluation.suite import evaluate_suite


def reproduce(
    path: str | Path,
    *,
    small: bool = False,
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """
    Train and measure the SAEs of a recipe and write its table; whatever is finished is kept.

    Args:
        path: YAML file of a `Recipe`.
        small: Use its small form.
        overrides: Dotted key to value, set last.
        say: Told what is trained, measured and kept.

    Returns:
        The Markdown table; `table.csv` lies beside it, and a report on each SAE below it.

    Raises:
        ValueError: The recipe is wrong, or a model or data set cannot be had.
    """
    path = Path(path)
    recipe = load_recipe(path, small=small, overrides=overrides)
    folder = Path(recipe.output_path) / (f"{path.stem}-small" if small else path.stem)
    if recipe.average_of:
        tables = []
        for name in recipe.average_of:
            part = load_recipe(path.parent / name, small=small, overrides=overrides)
            say(part.title)
            tables.append(_rows(part, say))
        rows = averaged(tables)
    else:
        rows = _rows(recipe, say)
    command = f"sparsemax-sae reproduce {path}{' --small' if small else ''}"
    return write_table(recipe, rows, folder, command)


def _rows(recipe: Recipe, say: Callable[[str], None]) -> Rows:
    rows: Rows = {}
    for name in recipe.arms:
        sae = trained_sae(recipe, name, say)
        # In the SAE's own folder, by what it was measured on, so that tables which measure the same share it.
        measured = evaluate_suite(
            str(sae),
            recipe.suite,
            recipe.evaluate,
            groups=recipe.groups,
            output=sae / "evaluation" / fingerprint(recipe.evaluate)[:8],
            say=lambda line, name=name: say(f"{name}: {line}"),
        )
        rows[name] = row(recipe, measured.results["groups"])
    return rows
