"""The command ``cache-activations``: a model's activations on disk, to train from them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sae_lens_sparsemax.cli import STOPPED

HELP = "Store the activations that a run trains on, to train from them."
OPTIONS = {"--debug", "--help"}
EPILOG = """\
example:
  sparsemax-sae cache-activations configs/vision/mini_clip_cifar10.yaml \\
      --cached_activations_path activations/mini_clip --cached_activations_dtype float16
  sparsemax-sae train configs/vision/mini_clip_cifar10.yaml --cached_activations_path activations/mini_clip

Each image, or context of text, is stored once: as many as 'training_tokens' needs, or all there are. The size is
checked against the free space first. The same command goes on after a stop, and makes damaged files again. Options
replace keys, as for 'train'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments; keys of the file are taken out before."""
    parser.add_argument("config", help="YAML file of the training run, on images or text")
    parser.add_argument("--KEY VALUE", dest="_", nargs="?", help="replace a key of the file")


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Store as the file and the keys say; returns the exit status."""
    from sae_lens_sparsemax.training.cache_runner import cache_activations
    from sae_lens_sparsemax.training.config_file import load_config

    loaded = load_config(options.config, overrides)
    if loaded.runner == "synthetic":
        raise ValueError(f"Activations are cached for images and text; {options.config} has 'runner: synthetic'.")
    try:
        cache = cache_activations(loaded.config)
    except KeyboardInterrupt:
        print("Stopped. The same command goes on after the last finished shard.", file=sys.stderr)
        return STOPPED
    folder = loaded.config.cached_activations_path
    print(f"\n{folder}: activations of {cache.n_inputs:,} {cache.unit}, {cache.n_bytes / 1e9:.3g} GB as {cache.dtype}")
    if cache.n_bad_inputs:
        print(f"{cache.n_bad_inputs:,} {cache.unit} could not be used. The first: {cache.first_errors[0]}")
    print(f"Next:  sparsemax-sae train {options.config} --cached_activations_path {folder}")
    return 0
