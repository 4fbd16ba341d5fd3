"""One table or figure: train the SAEs that are missing, measure what is not finished, set it beside the paper.

SAEs are shared by every recipe that asks for the same training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lens_sparsemax.compare.identity import fingerprint, resolved_sae
from sae_lens_sparsemax.compare.paper.columns import flat
from sae_lens_sparsemax.compare.paper.recipe import MATCH, Recipe, load_with_parts
from sae_lens_sparsemax.compare.suggest_k import mean_l0
from sae_lens_sparsemax.display.tables import csv_table, markdown_table
from sae_lens_sparsemax.evaluation.settings import require_inputs
from sae_lens_sparsemax.evaluation.suite import evaluate_suite
from sae_lens_sparsemax.files import atomic_write_text, read_object, require_writable, save_json
from sae_lens_sparsemax.sae.divergence import Diverged
from sae_lens_sparsemax.training.checkpoints import list_checkpoints, output_of_run
from sae_lens_sparsemax.training.config_file import config_from_values

TRAINED_FILENAME = "trained.json"
"""Written last, with the settings: an SAE without it is trained again, from its newest checkpoint if there is one."""

DIVERGED_FILENAME = "diverged.json"
"""Why there is no SAE, where its training came to nothing: it would again."""

# They change where and how fast a training runs, not what comes out.
_NOT_IN_FINGERPRINT = {"device", "n_decode_workers", "prefetch_image_batches", "verbose", "logger", "n_checkpoints"}


Rows = dict[str, list[float | None]]
"""Values of the columns by SAE; None where something could not be measured, or no SAE came of the training."""


def reproduce(
    path: str | Path,
    *,
    small: bool = False,
    overrides: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train and measure the SAEs of a recipe and write its table; whatever is finished is kept.

    An SAE whose training diverges has an empty row, and so has one that is to match its L0.

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
    recipe, measured = load_with_parts(path, small=small, overrides=overrides)
    folder = Path(recipe.output_path) / (f"{path.stem}-small" if small else path.stem)
    require_writable(recipe.output_path, "output_path")
    for part in measured:  # before hours of training
        require_inputs(part.measured)
    tables = []
    for part in measured:
        if recipe.average_of:
            say(part.title)
        tables.append(_rows(part, say))
    rows = averaged(tables, recipe.arms)
    command = f"sparsemax-sae reproduce {path}{' --small' if small else ''}"
    return write_table(recipe, rows, folder, command)


def _rows(recipe: Recipe, say: Callable[[str], None]) -> Rows:
    rows: Rows = {}
    for name in recipe.arms:
        try:
            sae = trained_sae(recipe, name, say)
        except Diverged as error:
            say(f"{name}: not measured, {error}")
            rows[name] = [None] * len(recipe.columns)
            continue
        # In the SAE's own folder, by what it was measured on, so that tables which measure the same share it.
        measured = evaluate_suite(
            str(sae),
            recipe.suite,
            recipe.evaluate,
            groups=recipe.groups,
            output=sae / "evaluation" / fingerprint(recipe.evaluate)[:8],
            say=lambda line, name=name: say(f"{name}: {line}"),
        )
        numbers = flat(measured.results["groups"])
        rows[name] = [numbers.get(column) for column in recipe.columns.values()]
    return rows


def trained_sae(recipe: Recipe, name: str, say: Callable[[str], None]) -> Path:
    """The folder of one SAE of a recipe, which is trained if it is not there.

    An SAE with `match` is trained at the mean L0 of another, which comes first.

    Raises:
        Diverged: the training came to nothing, now or earlier; or that of the SAE to match did.
    """
    k = None
    match = recipe.saes[name].get(MATCH)
    if match is not None:
        k, where = mean_l0(trained_sae(recipe, match, say), {})
        say(f"{name}: k = {k:.2f}, the mean L0 of {match} ({where})")
    settings = recipe.training(name, k)
    folder = Path(recipe.output_path) / "saes" / f"{_slug(name)}-{_training_fingerprint(settings)}"
    if (folder / TRAINED_FILENAME).is_file():
        say(f"{name}: kept, it was trained earlier ({folder})")
        return folder
    if (folder / DIVERGED_FILENAME).is_file():
        raise Diverged(str(read_object(folder / DIVERGED_FILENAME)["problem"]))
    loaded = config_from_values({**settings, "output_path": str(folder)})
    resume = bool(list_checkpoints(loaded.config.checkpoint_path))
    with output_of_run(loaded.config, resume=resume, overwrite=not resume):
        say(f"{name}: training in {folder}")
        try:
            loaded.make_runner().run(overwrite=not resume)
        except Diverged as error:
            save_json({"problem": str(error)}, folder / DIVERGED_FILENAME)
            raise
    save_json(settings, folder / TRAINED_FILENAME)
    return folder


def _training_fingerprint(settings: Mapping[str, Any]) -> str:
    lasting = {key: value for key, value in settings.items() if key not in _NOT_IN_FINGERPRINT}
    # What the SAE's defaults mean counts. A runner's do not: its config holds names and paths that are drawn anew.
    return fingerprint({**lasting, "sae": resolved_sae(config_from_values(settings).config.sae)})[:8]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


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


def averaged(tables: Sequence[Rows], names: Sequence[str]) -> Rows:
    """The mean over tables of every value of the SAEs of these names; None where one table has none."""
    return {name: [_mean(values) for values in zip(*(table[name] for table in tables), strict=True)] for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _cell(value: float | None, name: str) -> float | str | None:
    """A value as it is shown; accuracies in per cent, as in the paper."""
    return f"{100 * value:.1f}" if value is not None and name.endswith((".classes", ".images")) else value
