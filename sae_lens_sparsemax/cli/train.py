"""The command `train`: a training run from a YAML file, on text, images or synthetic data."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_sparsemax.settings.command_line import Group

HELP = "Train an SAE as a YAML file or a recipe says; without one, list the recipes."
USAGE = "RECIPE [--KEY VALUE ...] [--resume | --overwrite] [--dry_run] [--debug]"
STOPPED = "Continue from the last checkpoint with the same command and --resume."
EPILOG = """\
Every key of the file can be replaced on the command line by its dotted name:
  sparsemax-sae train quickstart --sae.target_l0 32 --lr 1e-3
  sparsemax-sae train config.yaml --set sae.architecture=topk --set sae.target_l0=null --sae.k 32

  sparsemax-sae train quickstart --help          all keys of that training, with what they mean
  sparsemax-sae train quickstart --dry_run       what they would be, trained nothing
  torchrun --nproc-per-node 8 -m sae_lens_sparsemax train config.yaml --parallel.concepts 8
                                                 one SAE on eight devices; with --dry_run (and without torchrun) an
                                                 estimate of memory, messages and time

Keys are the fields of SAELens's runner configs; 'sae:' holds the fields of the architecture's training config,
'logger:' those of LoggingConfig. 'runner: vision' trains on images, 'runner: synthetic' on SAELens's synthetic data,
and 'base: other.yaml' takes what is not given from another file.

A run writes to its 'output_path' the SAE, metrics.jsonl, training_curves.png and l0_histogram.png.
Ctrl-C saves a checkpoint first; continue with:
  sparsemax-sae train config.yaml --resume
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments; keys of the file are taken out before."""
    parser.add_argument("recipe", nargs="?", help="YAML file, or the name of a recipe (see 'sparsemax-sae recipes')")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint of this output")
    parser.add_argument("--overwrite", action="store_true", help="replace the SAE and checkpoints of an earlier run")
    dry_run = "check the file and print the complete configuration, and for several processes what each needs"
    parser.add_argument("--dry_run", action="store_true", help=dry_run)


def settings(words: Sequence[str]) -> list[Group]:
    """The settings of the runner and the architecture that the recipe among the words names."""
    from sae_lens_sparsemax.training.config_file import settings_of

    recipe = _recipe_among(words)
    return [] if recipe is None else settings_of(recipe)


def _recipe_among(words: Sequence[str]) -> str | None:
    """The word that names a recipe or a file, or that seems meant to, before it is known which options take a value."""
    from sae_lens_sparsemax.settings.recipes import is_recipe

    named = [(before, word) for before, word in pairwise(("", *words)) if not word.startswith("-")]
    # Those first that can be no option's value.
    named.sort(key=lambda each: each[0].startswith("--") and "=" not in each[0])
    candidates = [word for _, word in named]
    return next((word for word in candidates if is_recipe(word, "train")), next(iter(candidates), None))


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Train as the file and the keys say; returns the exit status."""
    from sae_lens_sparsemax.cli.recipes import print_recipes
    from sae_lens_sparsemax.processes.together import is_first, together
    from sae_lens_sparsemax.training.checkpoints import output_of_run
    from sae_lens_sparsemax.training.config_file import load_config
    from sae_lens_sparsemax.training.estimate import require_room_for_final_sae
    from sae_lens_sparsemax.training.mesh import parallel_of

    if options.recipe is None:
        print_recipes(("train",))
        return 0
    with together():
        loaded = load_config(options.recipe, overrides)
    if options.dry_run:
        if is_first():
            print(loaded.describe())
            if parallel_of(loaded.config).size > 1:
                require_room_for_final_sae(loaded.config)
        return 0
    with output_of_run(loaded.config, resume=options.resume, overwrite=options.overwrite):
        loaded.make_runner().run(overwrite=options.overwrite)
    output = loaded.config.output_path
    if output is not None and is_first():
        print(f"\nSaved to {output}: the SAE, metrics.jsonl, training_curves.png, l0_histogram.png")
        if loaded.runner == "language_model":
            print(f"Next:  {shlex.join(['sparsemax-sae', 'evaluate', output])}")
    return 0
