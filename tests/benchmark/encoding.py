"""python -m tests.benchmark.encoding: how fast SAEs encode tokens for evaluation, SAELens's beside ours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.display.tables import markdown_table
from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig
from tests.benchmark.forms import for_evaluation, label
from tests.benchmark.machine import add_machine_options, machine, use_machine
from tests.benchmark.measure import median_seconds
from tests.benchmark.passes import Problem, floor_pass

EPILOG = """\
examples:
  python -m tests.benchmark.encoding
  python -m tests.benchmark.encoding --d_sae 12288 24576 49152 --tokens 8192 --device cuda --screening always
  python -m tests.benchmark.encoding --d_in 576 --d_sae 2304 --support 32 --threads 1 --only one_pass topk

encode() of SAEs that were saved and loaded, without gradients: activations in, a dense (tokens, M) matrix out. Weights
and activations are random; gates and JumpReLU's thresholds are set so that as many concepts are active as --support
says, on average. SAELens saves a trained BatchTopK as a JumpReLU with one threshold for all concepts, so the column of
JumpReLU is BatchTopK's too. TopK is dense here, as SAELens's TopK for inference always is.

Each cell says tokens per second, and the time as a multiple of the score product's (torch.mm of the same tokens and
concepts, into existing memory), from medians of rounds in which all take turns.
"""
FORMS = ("one_pass", "sparsemax", "topk", "jumprelu")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    args = _parser().parse_args(arguments)
    if too_small := [d_sae for d_sae in args.d_sae if d_sae <= args.support]:
        raise SystemExit(f"--d_sae must be larger than --support {args.support}, got {too_small[0]}")
    use_machine(args.device, args.screening, args.threads)
    problems = [Problem(args.tokens, args.d_in, d_sae, args.support, args.device) for d_sae in args.d_sae]
    rows = [_row(problem, args) for problem in tqdm(problems, desc="Benchmark", file=sys.stderr)]
    names = [_label(form, problems[0]) for form in args.only]
    sys.stdout.write(f"{machine(args.device)}; tokens per second, time / score product\n")
    sys.stdout.write(markdown_table(["N", "d", "M", "support", "score product", *names], rows) + "\n")


def _row(problem: Problem, args: argparse.Namespace) -> list[Any]:
    x = problem.activations()
    passes = {"floor": floor_pass(problem)}
    passes |= {form: encoding_pass(for_evaluation(form, _own(problem), x), x) for form in args.only}
    seconds = median_seconds(passes, args.repeats, problem.device)
    floor = seconds.pop("floor")
    cells = [f"{_rate(problem.n_tokens / taken)}, {taken / floor:.2f}×" for taken in seconds.values()]
    return [problem.n_tokens, problem.d_in, problem.d_sae, problem.support, f"{1e3 * floor:.1f} ms", *cells]


def encoding_pass(sae: SAE[Any], x: torch.Tensor) -> Callable[[], None]:
    """Encoding as evaluations do it: (N, d_in) activations in, (N, d_sae) out, no gradients."""

    @torch.no_grad()
    def run() -> None:
        sae.encode(x)

    return run


def _own(problem: Problem) -> SparsemaxTrainingSAEConfig:
    """The default SAE."""
    return SparsemaxTrainingSAEConfig(
        d_in=problem.d_in, d_sae=problem.d_sae, target_l0=problem.support, device=problem.device
    )


def _label(form: str, problem: Problem) -> str:
    """As in training, but for what is another thing in evaluation."""
    return {"topk": "SAELens TopK", "jumprelu": "SAELens JumpReLU, BatchTopK"}.get(form, label(form, _own(problem)))


def _rate(tokens_per_second: float) -> str:
    if tokens_per_second >= 1e6:
        return f"{tokens_per_second / 1e6:.2f} M/s"
    return f"{tokens_per_second / 1e3:.1f} k/s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmark.encoding",
        description="Tokens per second of encoding alone, as in evaluation: one pass, the default, and SAELens's SAEs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--d_sae", type=int, nargs="+", default=[6144, 12288, 24576], metavar="M", help="concepts")
    parser.add_argument("--d_in", type=int, default=768, metavar="d", help="width (default 768)")
    parser.add_argument("--tokens", type=int, default=1024, metavar="N", help="tokens per batch (default 1024)")
    parser.add_argument("--support", type=int, default=50, help="concepts per token (default 50)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument("--only", choices=FORMS, nargs="+", default=list(FORMS), help="what to measure (default: all)")
    parser.add_argument("--device", default="cpu")
    add_machine_options(parser)
    return parser


if __name__ == "__main__":
    main()
