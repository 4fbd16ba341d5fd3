"""The command `recipes`: what configurations come with the package."""

from __future__ import annotations

import argparse
from typing import Any

IS_SHARED = False
HELP = "List the trainings, evaluations, comparisons and tables that come with the package, by name."
EPILOG = """\
Each name stands for its file: 'sparsemax-sae train NAME', 'compare NAME', 'reproduce NAME', 'evaluate --config NAME'.
The last part is enough where a command has one recipe that ends so.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments of its own."""


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:  # noqa: ARG001  the same for all commands
    """Print the list; returns the exit status."""
    print_recipes(("train", "evaluate", "compare", "reproduce"))
    return 0


def print_recipes(commands: tuple[str, ...]) -> None:
    """Print the recipes of some commands, a line each."""
    from sae_lens_sparsemax.settings.recipes import RECIPES, recipe_names, recipe_title

    for command in commands:
        names = recipe_names(command)
        print(f"sparsemax-sae {command}" + (" SAE --config" if command == "evaluate" else ""))
        for name in names:
            print(f"  {name:<{max(map(len, names)) + 2}}{recipe_title(name)}")
    print(f"The files are in {RECIPES}.")
