"""The command ``suggest-k``: from a sparsemax SAE to the TopK and BatchTopK trainings that it is compared with."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_sparsemax.settings.command_line import Group

IS_SHARED = False
HELP = "Write the TopK and BatchTopK trainings at the mean L0 of a sparsemax SAE."
USAGE = "SAE [--settings FILE] [--l0 X] [--output_path FOLDER] [--KEY VALUE ...] [--debug]"

EPILOG = """\
The number of active concepts of a sparsemax SAE follows its input; its mean is the k at which TopK and BatchTopK
are comparable (Table 4 of the paper). The command measures that mean on held-out data and writes topk.yaml and
batchtopk.yaml: the settings the SAE was trained with, everything outside 'sae' unchanged, in which only the
architecture differs.

examples:
  sparsemax-sae suggest-k output/my_run
  sparsemax-sae suggest-k output/my_run --dataset_path cifar10_test.parquet --n_images 5000
  sparsemax-sae suggest-k output/my_run --datasets.wikitext103.path wikitext103_test.txt
  sparsemax-sae suggest-k output/my_run --settings configs/my_run.yaml --l0 31.7
  sparsemax-sae train output/my_run/suggested/topk.yaml

The training settings are read from the SAE's folder (runner_cfg.json, written by 'train'). Keys such as
--dataset_path are those of 'evaluate --suite vision' and '--suite text'. If nothing is named to measure on, the mean
over the last steps of the training log is taken.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments; settings of the suite are taken out before."""
    parser.add_argument("path", help="folder of a trained SAE")
    parser.add_argument("--settings", help="YAML file it was trained with (default: kept in its folder)")
    parser.add_argument("--l0", metavar="X", help="a mean L0 that is known already; nothing is measured then")
    parser.add_argument("--output_path", help="folder for the two files (default: suggested/ in the SAE's)")


def settings(words: Sequence[str]) -> list[Group]:  # noqa: ARG001  the same for all commands
    """What L0 can be measured on: the settings of the suites."""
    from sae_lens_sparsemax.cli.evaluate import suite_settings

    return suite_settings("vision", "text")


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Measure and write as the arguments say; returns the exit status."""
    from sae_lens_sparsemax.compare.suggest_k import (
        mean_l0,
        require_sae_settings,
        training_settings,
        write_matched_settings,
    )
    from sae_lens_sparsemax.files import require_writable
    from sae_lens_sparsemax.settings.checking import Word, convert, refuse_unknown_keys
    from sae_lens_sparsemax.settings.command_line import apply_overrides
    from sae_lens_sparsemax.settings.values import expanded
    from sae_lens_sparsemax.settings.yaml_files import read_yaml

    given = apply_overrides({}, overrides)
    refuse_unknown_keys(given, sorted({field.name for group in settings(()) for field in fields(group.cls)}))
    known = None if options.l0 is None else convert(Word(options.l0), float, "l0")
    folder = expanded(options.path)
    output = options.output_path or folder / "suggested"
    require_writable(output, "--output_path")
    trained = read_yaml(options.settings) if options.settings is not None else training_settings(folder)
    require_sae_settings(trained)
    l0, where = (known, "given") if known is not None else mean_l0(folder, given)
    paths = write_matched_settings(trained, l0, output)
    print(f"Mean L0 of {folder}: {l0:.2f} ({where})")
    for path in paths:
        print(f"  {shlex.join(['sparsemax-sae', 'train', str(path)])}")
    return 0
