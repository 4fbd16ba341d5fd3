"""The command ``reproduce``: a table or figure of the paper from one file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_sparsemax.settings.command_line import Group

IS_SHARED = False
HELP = "Reproduce a table or figure of the paper."
USAGE = "RECIPE [--small] [--check] [--KEY VALUE ...] [--debug]"
STOPPED = "What is trained and measured is kept: the same command goes on where it stopped."

EPILOG = """\
examples:
  sparsemax-sae reproduce configs/paper/table5.yaml --small
  sparsemax-sae reproduce configs/paper/table1.yaml --train.device cuda --evaluate.device cuda
  sparsemax-sae reproduce configs/paper/table12.yaml --check

The full-size forms train on the models and data sets of the Hugging Face hub, with the paper's sizes, and need a
GPU; '--small' trains and measures small SAEs in minutes on a CPU, with a small CLIP and CIFAR-10 or the language
model that the package carries, and data in ../shared. Tables share their SAEs: those that are trained are kept, and
so is every metric group that is finished.

Every key of the file can be replaced by its dotted name, as for 'train'. The output folder (output/paper) gets
table.md, with the paper's own figures below the measured ones, and table.csv; each SAE's folder gets its report.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments; settings are taken out before."""
    parser.add_argument("recipe", help="YAML file, or the name of a recipe such as table5 (see 'recipes')")
    parser.add_argument("--small", action="store_true", help="the form that runs on a CPU in minutes")
    parser.add_argument("--check", action="store_true", help="only check the file, and say what would be done")


def settings(words: Sequence[str]) -> list[Group]:  # noqa: ARG001  the same for all commands
    """The settings of a recipe of the paper."""
    from sae_lens_sparsemax.compare.paper import Recipe
    from sae_lens_sparsemax.settings.command_line import Group

    return [Group("settings", Recipe)]


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Reproduce as the arguments say; returns the exit status."""
    from sae_lens_sparsemax.compare.paper import load_with_parts, reproduce

    if options.check:
        recipe, _ = load_with_parts(options.recipe, small=options.small, overrides=overrides)
        print(f"{recipe.title}\nSAEs: {', '.join(recipe.arms)}\nmeasured: {', '.join(recipe.columns)}")
        return 0
    table = reproduce(
        options.recipe, small=options.small, overrides=overrides, say=lambda line: print(line, file=sys.stderr)
    )
    print(f"\n{table.read_text(encoding='utf-8')}\nTable: {table}")
    return 0
