"""The command ``train``: a training run from a YAML file, on text, images or synthetic data."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sae_lens_sparsemax.cli import STOPPED

HELP = "Train an SAE as a YAML file says."
OPTIONS = {"--resume", "--overwrite", "--dry-run", "--debug", "--help"}
EPILOG = """\
Every key of the file can be replaced on the command line, with its dotted name; values are YAML:
  sparsemax-sae train config.yaml --sae.target_l0 32 --lr 1e-3
  sparsemax-sae train config.yaml --set sae.architecture=topk --set sae.target_l0=null

Keys are the fields of SAELens's runner configs; 'sae:' holds the fields of the architecture's training
config, 'logger:' those of LoggingConfig. 'runner: synthetic' trains on SAELens's synthetic data.

A run writes to its 'output_path' the SAE, metrics.jsonl, training_curves.png and l0_histogram.png.
Ctrl-C saves a checkpoint first; continue with:
  sparsemax-sae train config.yaml --resume
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments; keys of the file are taken out before."""
    parser.add_argument("config", help="YAML file; see the folder configs/ for examples")
    parser.add_argument("--KEY VALUE", dest="_", nargs="?", help="replace a key of the file, e.g. --sae.d_sae 8192")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint of this output")
    parser.add_argument("--overwrite", action="store_true", help="delete checkpoints of an earlier run and start anew")
    parser.add_argument("--dry-run", action="store_true", help="check the file and print the complete configuration")


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Train as the file and the keys say; returns the exit status."""
    from sae_lens.training._interruption import InterruptedException

    from sae_lens_sparsemax.training.checkpoints import prepare_output
    from sae_lens_sparsemax.training.config_file import load_config

    loaded = load_config(options.config, overrides)
    if options.dry_run:
        print(loaded.describe())
        return 0
    prepare_output(loaded.config, resume=options.resume, overwrite=options.overwrite)
    try:
        loaded.make_runner().run()
    except InterruptedException:
        print("Stopped. Continue with the same command and --resume.", file=sys.stderr)
        return STOPPED
    output = loaded.config.output_path
    if output is not None:
        print(f"\nSaved to {output}: the SAE, metrics.jsonl, training_curves.png, l0_histogram.png")
        if loaded.runner == "language_model":
            print(f"Next:  sparsemax-sae evaluate {output}")
    return 0
