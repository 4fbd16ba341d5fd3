"""The command ``cache-activations``: a vision model's activations on disk, to train from them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sae_lens_sparsemax.cli import STOPPED

HELP = "Store the activations that a vision run trains on, to train from them."
OPTIONS = {"--debug", "--help"}
EPILOG = """\
example:
  sparsemax-sae cache-activations configs/vision/mini_clip_cifar10.yaml \\
      --cached_activations_path activations/mini_clip --cached_activations_dtype float16
  sparsemax-sae train configs/vision/mini_clip_cifar10.yaml --cached_activations_path activations/mini_clip

Each image is stored once: as many as 'training_tokens' needs, or all there are. The size is checked against the free
space first. The same command goes on after a stop, and makes damaged files again. Options replace keys, as for 'train'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments; keys of the file are taken out before."""
    parser.add_argument("config", help="YAML file of the training run, with 'runner: vision'")
    parser.add_argument("--KEY VALUE", dest="_", nargs="?", help="replace a key of the file")


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Store as the file and the keys say; returns the exit status."""
    from sae_lens_sparsemax.training.cache_runner import VisionCacheActivationsRunner
    from sae_lens_sparsemax.training.config_file import load_config

    loaded = load_config(options.config, overrides)
    if loaded.runner != "vision":
        raise ValueError(f"Activations are cached for 'runner: vision'; {options.config} has {loaded.runner!r}.")
    try:
        cache = VisionCacheActivationsRunner(loaded.config).run()
    except KeyboardInterrupt:
        print("Stopped. The same command goes on after the last finished shard.", file=sys.stderr)
        return STOPPED
    folder = loaded.config.cached_activations_path
    print(f"\n{folder}: activations of {cache.n_images:,} images, {cache.n_bytes / 1e9:.3g} GB as {cache.dtype}")
    if cache.n_bad_images:
        print(f"{cache.n_bad_images:,} images could not be used. The first: {cache.first_errors[0]}")
    print(f"Next:  sparsemax-sae train {options.config} --cached_activations_path {folder}")
    return 0
