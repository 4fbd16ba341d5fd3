"""The command `explore`: static pages that show what concepts fire on."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_sparsemax.settings.command_line import Group

HELP = "Write a folder of static pages that show what the concepts of a saved SAE fire on."
USAGE = "SAE [--compare SAE ...] [--names NAME ...] [--output_path FOLDER] [--KEY VALUE ...] [--debug]"
STOPPED = "The same command goes on where it was."
EPILOG = """\
examples:
  sparsemax-sae explore output/quickstart
  sparsemax-sae explore output/my_run --dataset_path wikitext103_test.txt --samples 5000
  sparsemax-sae explore output/mini_clip_cifar10 --output_path pages --encoder openai/clip-vit-large-patch14
  sparsemax-sae explore output/sparsemax --compare output/batchtopk

Open index.html of the folder in a browser: it needs no server and no network. Model, hook and data are read from
the SAE's metadata; options replace them. A command that was stopped goes on where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments."""
    parser.add_argument("path", help="folder of an SAE or checkpoint, or user/repository:id on the hub")
    parser.add_argument("--compare", nargs="+", default=[], metavar="PATH", help="more SAEs to show beside it")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to call them (default: parts of their paths)")
    place = "folder to write (default: explore inside PATH, for an SAE on the hub inside output/user/repository/id)"
    parser.add_argument("--output_path", help=place)


def settings(words: Sequence[str]) -> list[Group]:  # noqa: ARG001  the same for all commands
    """What to explore on, and how much to keep."""
    from sae_lens_sparsemax.explore.settings import ExploreSettings
    from sae_lens_sparsemax.settings.command_line import Group

    return [Group("settings (by default, what the SAE's metadata say)", ExploreSettings)]


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Explore as the options say; returns the exit status."""
    from sae_lens_sparsemax.explore.explored import PAGES
    from sae_lens_sparsemax.explore.run import explore
    from sae_lens_sparsemax.explore.settings import ExploreSettings
    from sae_lens_sparsemax.models.saved_saes import place_of
    from sae_lens_sparsemax.processes.together import is_first, together
    from sae_lens_sparsemax.settings.checking import build
    from sae_lens_sparsemax.settings.command_line import apply_overrides

    with together():
        given = build(ExploreSettings, apply_overrides({}, overrides))
    inside = place_of(options.path) / PAGES
    output = options.output_path or inside
    page = explore([options.path, *options.compare], output, given, names=options.names)
    if is_first():
        pages = [] if output == inside else ["--pages", str(output)]
        print(f"\nOpen in a browser: {page}")
        print(f"On inputs of your own: {shlex.join(['sparsemax-sae', 'app', options.path, *pages])}")
    return 0
