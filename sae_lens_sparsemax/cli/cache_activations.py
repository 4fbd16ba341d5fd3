"""The command `cache-activations`: a model's activations on disk, to train from them."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from sae_lens_sparsemax.cli.train import settings

__all__ = ["add_arguments", "run", "settings"]

HELP = "Store the activations that a run trains on, to train from them."
USAGE = "RECIPE --cached_activations_path FOLDER [--KEY VALUE ...] [--debug]"
STOPPED = "The same command goes on after the last finished shard."
EPILOG = """\
example:
  sparsemax-sae cache-activations vision/mini_clip_cifar10 \\
      --cached_activations_path activations/mini_clip --cached_activations_dtype float16
  sparsemax-sae train vision/mini_clip_cifar10 --cached_activations_path activations/mini_clip
  torchrun --nproc-per-node 8 -m sae_lens_sparsemax cache-activations gpt2_1m_concepts_8_gpus \\
      --cached_activations_path activations/gpt2 --device cuda

Each image, or context of text, is stored once: as many as 'training_tokens' needs, or all there are. The size is
checked against the free space first. The same command goes on after a stop, and makes damaged files again, with as
many processes as before or others: they all make the same cache. Options replace keys, as for 'train'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments; keys of the file are taken out before."""
    parser.add_argument("recipe", help="YAML file of the training run, on images or text, or name of a recipe")


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Store as the file and the keys say; returns the exit status."""
    from sae_lens_sparsemax.processes.together import is_first, together
    from sae_lens_sparsemax.settings.sentences import must_be
    from sae_lens_sparsemax.training.cache_runner import cache_activations
    from sae_lens_sparsemax.training.config_file import load_config

    with together():
        loaded = load_config(options.recipe, overrides)
        if loaded.runner == "synthetic":
            raise must_be("runner", "'vision' or 'language_model', whose activations can be cached", loaded.runner)
    cache = cache_activations(loaded.config)
    folder = loaded.config.cached_activations_path
    if not is_first():
        return 0
    print(f"\n{folder}: activations of {cache.n_inputs:,} {cache.unit}, {cache.n_bytes / 1e9:.3g} GB as {cache.dtype}")
    if cache.n_bad_inputs:
        print(f"{cache.n_bad_inputs:,} {cache.unit} could not be used. The first: {cache.first_errors[0]}")
    again = ["sparsemax-sae", "train", options.recipe, "--cached_activations_path", folder]
    print(f"Next:  {shlex.join(again)}")
    return 0
