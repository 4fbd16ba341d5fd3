"""python -m tests.benchmark.vision: what feeding and training on a vision model cost."""

from __future__ import annotations

import argparse
import dataclasses
import sys

import torch

from sae_lens_sparsemax.cli.main import keep_freed_memory
from tests.benchmark.machine import machine
from tests.benchmark.vision_problem import RANDOM_VIT, VisionProblem
from tests.benchmark.vision_step import PARTS, step_cost
from tests.benchmark.vision_store import store_throughput

EPILOG = """\
examples:
  python -m tests.benchmark.vision store --dataset_path photos.parquet --image_batch 16 --buffer_batches 2
  python -m tests.benchmark.vision store --model_name path/to/clip --dataset_path cifar10.parquet --image_batch 256 \\
      --train_batch 2048 --workers 1 --batches 20 --with_cache
  python -m tests.benchmark.vision step --dataset_path photos.parquet

Without --model_name, the vision tower of CLIP ViT-B/16 with random weights; without --dataset_path, made-up
photographs.
"""
_LABELS = {
    "model": "model alone, images ready",
    "decoding": "decoding and preprocessing alone",
    "store": "store, images decoded on the way",
    "cache": "store, activations from disk",
}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    args = _parser().parse_args(arguments)
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    problem = VisionProblem(**{field.name: getattr(args, field.name) for field in dataclasses.fields(VisionProblem)})
    lines = [f"{machine('cpu')}; {problem.model_name}, {problem.hook_name}, {problem.image_batch} images at a time"]
    if args.command == "store":
        speeds = store_throughput(problem, args.batches, args.rounds, with_cache=args.with_cache)
        lines += ["| | images a second | of the model alone |", "|---|---|---|"]
        lines += [
            f"| {_LABELS[name]} | {speed:.4g} | {100 * speed / speeds['model']:.0f} % |"
            for name, speed in speeds.items()
        ]
    else:
        cost = step_cost(problem, args.steps)
        lines += [
            f"{problem.train_batch:,} tokens a step, {problem.d_sae:,} concepts, {problem.buffer_batches} batches"
        ]
        lines += ["| part of a step | seconds | share |", "|---|---|---|"]
        lines += [
            f"| {label} | {cost[name]:.2f} | {100 * cost[name] / cost['step']:.0f} % |"
            for name, label in {**PARTS, "step": "whole step"}.items()
        ]
        lines += [f"{cost['images']:.2f} images a second; peak memory of the process {cost['peak_bytes'] / 1e9:.2f} GB"]
    sys.stdout.write("\n".join(lines) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmark.vision",
        description="Images a second of the activations store, and the cost of a training step, on a vision model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = VisionProblem()
    commands = parser.add_subparsers(dest="command", required=True)
    store = commands.add_parser("store", help="images a second: model alone, decoding alone, store")
    store.add_argument("--batches", type=int, default=2, help="batches of images in each turn")
    store.add_argument("--rounds", type=int, default=5, help="turns of which the median counts")
    store.add_argument("--with_cache", action="store_true", help="also read activations cached on disk")
    step = commands.add_parser("step", help="time and memory of a training step")
    step.add_argument("--steps", type=int, default=10, help="steps that count")
    for command in (store, step):
        command.add_argument(
            "--model_name",
            default=default.model_name,
            help=f"folder or hub id (default {RANDOM_VIT})",
        )
        command.add_argument("--dataset_path", help="parquet file, folder or hub id")
        command.add_argument("--hook_name", default=default.hook_name)
        command.add_argument(
            "--image_batch", type=int, default=default.image_batch, help="images the model sees at once"
        )
        command.add_argument("--train_batch", type=int, default=default.train_batch, help="tokens in a training batch")
        command.add_argument(
            "--buffer_batches", type=int, default=default.buffer_batches, help="shuffle buffer, in batches"
        )
        command.add_argument("--workers", type=int, default=default.workers, help="processes that decode")
        command.add_argument("--d_sae", type=int, default=default.d_sae, metavar="M")
        command.add_argument("--target_l0", type=float, default=default.target_l0)
        command.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    return parser


if __name__ == "__main__":
    main()
