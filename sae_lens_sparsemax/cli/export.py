"""The command `export`: what `explore` has gathered, for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_sparsemax.settings.command_line import Group

IS_SHARED = False
HELP = "Write concepts as a table (CSV, Parquet), as SAEDashboard's JSON, or for Neuronpedia's import."
USAGE = "SAE_OR_PAGES [--format FORMAT] [--output_path PATH] [--KEY VALUE ...] [--debug]"
EPILOG = """\
examples:
  sparsemax-sae export output/quickstart
  sparsemax-sae export output/quickstart --format parquet --output_path concepts.parquet
  sparsemax-sae export output/my_run/explore --format neuronpedia --model_id gpt2-small --source_set res-sparsemax
  sparsemax-sae export output/my_run --format saedashboard

What 'explore' has gathered is read from its pages; an SAE without pages is explored first. Labels of a person
(labels.csv in the SAE's folder, columns concept and label) and those that 'explain' proposed go along.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments."""
    parser.add_argument("path", help="folder of an SAE, user/repository:id on the hub, or the folder of pages")
    parser.add_argument("--output_path", help="file or new folder to write (default: beside the pages)")


def settings(words: Sequence[str]) -> list[Group]:  # noqa: ARG001  the same for all commands
    """What to write."""
    from sae_lens_sparsemax.explore.export import ExportSettings
    from sae_lens_sparsemax.settings.command_line import Group

    return [Group("settings", ExportSettings)]


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Export as the options say; returns the exit status."""
    from sae_lens_sparsemax.explore.export import ExportSettings, export
    from sae_lens_sparsemax.settings.checking import build
    from sae_lens_sparsemax.settings.command_line import apply_overrides

    given = build(ExportSettings, apply_overrides({}, overrides))
    print(f"Wrote {export(options.path, options.output_path, given)}")
    return 0
