"""The command ``compare``: a grid of SAEs on the same activations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_sparsemax.settings.command_line import Group

IS_SHARED = False
HELP = "Train architectures against each other on the same activations."
USAGE = "RECIPE [--KEY VALUE ...] [--debug]"
STOPPED = "Finished runs are kept: the same command goes on where it stopped."
EPILOG = """\
examples:
  sparsemax-sae compare configs/compare/synthetic.yaml
  sparsemax-sae compare configs/compare/mini_clip.yaml --hook_name blocks.0.hook_resid_post
  sparsemax-sae compare configs/compare/smollm2.yaml --model_name path/to/SmolLM2-135M-Instruct \\
      --dataset_path text.jsonl --eval_datasets.wikitext103.path wikitext103_test.txt

Every arm trains on the same activations in the same order at every learning rate of its grid; the best rate by
held-out explained variance stands for it. Finished runs are kept: the same command goes on where it stopped.
The output folder gets table.md, table.csv, matched.csv (at the same L0), runs.csv and Pareto plots. Options replace
keys, as for 'train'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments; keys of the file are taken out before."""
    parser.add_argument("recipe", help="YAML file, or the name of a recipe such as synthetic (see 'recipes')")


def settings(words: Sequence[str]) -> list[Group]:  # noqa: ARG001  the same for all commands
    """The settings of a comparison."""
    from sae_lens_sparsemax.compare.config import CompareConfig, ComparedImages
    from sae_lens_sparsemax.settings.command_line import Group

    return [Group("settings", CompareConfig), Group("settings for a vision model", ComparedImages, "images")]


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Compare as the file and the keys say; returns the exit status."""
    from sae_lens_sparsemax.compare.config import config_from_yaml
    from sae_lens_sparsemax.compare.runner import compare

    table = compare(config_from_yaml(options.recipe, overrides))
    print(f"\n{table.read_text(encoding='utf-8')}\nTables and plots: {table.parent}")
    return 0
