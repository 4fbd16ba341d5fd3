"""python -m tests.benchmark: ratios of training passes to the score product, and how they grow."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm.auto import tqdm

from tests.benchmark.machine import add_machine_options, machine, use_machine
from tests.benchmark.measure import median_seconds, peak_extra_bytes
from tests.benchmark.passes import Problem, floor_pass, naive_pass, sparsemax_pass, topk_pass
from tests.benchmark.report import LABELS, as_table, plot_growth

EPILOG = """\
examples:
  python -m tests.benchmark                         the table of its README, about ten minutes on two cores
  python -m tests.benchmark --d_sae 12288 --support 50
  python -m tests.benchmark --d_sae 12288 --support 50 --tokens 1024 256 4096 --output_path bench/
  python -m tests.benchmark --d_sae 12288 --support 50 --tokens 1024 --d_in 768 192 384 1536 --only passes_2_1
  python -m tests.benchmark.training --help         whole steps on a language model
  python -m tests.benchmark.encoding --help         encoding alone, as in evaluation

Every figure is a ratio within one run: the median time of a forward and backward pass over that of the score product
alone (torch.mm of the same tokens and concepts), and the peak extra memory over the size of the score matrix.
"""


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    args = _parser().parse_args(arguments)
    use_machine(args.device, args.screening, args.threads)
    problems = _problems(args)
    rows = [_measure(problem, args) for problem in tqdm(problems, desc="Benchmark", file=sys.stderr)]
    sys.stdout.write(f"{machine(args.device)}; fwd+bwd time / score product, peak extra memory / score matrix\n")
    sys.stdout.write(as_table(rows) + "\n")
    if args.output_path:
        folder = Path(args.output_path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmark.json").write_text(json.dumps({"machine": machine(args.device), "rows": rows}, indent=1))
        plot_growth(rows, folder / "benchmark.png")


def _problems(args: argparse.Namespace) -> list[Problem]:
    """Every M with every support at the first N and d; further N and d at the middle one of each."""
    (first, *more), (d_in, *widths) = args.tokens, args.d_in
    sizes = [(first, m, support) for m in args.d_sae for support in args.support if support < m]
    if not sizes:
        raise SystemExit(f"no support of {args.support} is smaller than a dictionary of {args.d_sae}")
    middle, usual = (sorted(values)[len(values) // 2] for values in (args.d_sae, args.support))
    problems = [
        Problem(n, d_in, m, support, args.device) for n, m, support in sizes + [(n, middle, usual) for n in more]
    ]
    return problems + [Problem(first, d, middle, usual, args.device) for d in widths]


def _measure(problem: Problem, args: argparse.Namespace) -> dict[str, float | int]:
    passes = {"floor": floor_pass(problem), "sparsemax": sparsemax_pass(problem)}
    if "probabilities" in args.only:
        passes["probabilities"] = sparsemax_pass(problem, activations="probabilities")
    if "mlp" in args.only:
        passes["mlp"] = sparsemax_pass(problem, structure="mlp")
    if "alpha_3" in args.only:
        passes["alpha_3"] = sparsemax_pass(problem, alpha=3.0)
    if "alpha_inf" in args.only:
        passes["alpha_inf"] = sparsemax_pass(problem, alpha=float("inf"))
    for name in ("passes_1_1", "passes_2_0", "passes_2_1", "passes_3_0", "passes_3_1"):
        if name in args.only:
            _, n, refinements = name.split("_")
            looks = {"passes": int(n), "refinements": int(refinements), "activation_floor": 0.5}
            passes[name] = sparsemax_pass(problem, alpha=3.0, **looks)
    if "topk" in args.only:
        passes["topk"] = topk_pass(problem, sparse=False)
    if "topk_sparse" in args.only:
        passes["topk_sparse"] = topk_pass(problem, sparse=True)
    if "naive" in args.only and problem.d_sae <= args.naive_up_to:
        passes["naive"] = naive_pass(problem)
    seconds = median_seconds(passes, args.repeats, problem.device)
    score_bytes = 4 * problem.n_tokens * problem.d_sae
    row: dict[str, float | int] = {
        "n_tokens": problem.n_tokens,
        "d_in": problem.d_in,
        "d_sae": problem.d_sae,
        "support": problem.support,
        "floor_ms": 1e3 * seconds["floor"],
    }
    for name in passes:
        if name != "floor":
            row[f"{name}_time"] = seconds[name] / seconds["floor"]
            row[f"{name}_memory"] = peak_extra_bytes(passes[name], problem.device) / score_bytes
    return row


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmark",
        description="Cost of a training pass of the sparsemax SAE, of its naive form, and of SAELens's TopK.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--d_sae", type=int, nargs="+", default=[3072, 6144, 12288, 24576, 49152], metavar="M")
    parser.add_argument("--support", type=int, nargs="+", default=[10, 50, 300], help="concepts per token")
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[1024, 256, 512, 2048, 4096],
        metavar="N",
        help="tokens per batch; those after the first at the middle M and support only",
    )
    parser.add_argument(
        "--d_in", type=int, nargs="+", default=[768], metavar="d", help="width; those after the first as further N"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--device", default="cpu")
    add_machine_options(parser)
    parser.add_argument(
        "--only",
        nargs="+",
        default=["alpha_3", "passes_2_1", "topk", "topk_sparse", "naive"],
        choices=list(LABELS),
        help="what to measure beside the sparsemax SAE",
    )
    parser.add_argument("--naive_up_to", type=int, default=24576, metavar="M", help="skip the naive form above this")
    parser.add_argument("--output_path", help="folder for benchmark.json and benchmark.png")
    return parser


if __name__ == "__main__":
    main()
