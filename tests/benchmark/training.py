"""python -m tests.benchmark.training: what whole training steps cost, and where the time goes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from sae_lens_sparsemax.display.tables import markdown_table
from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.settings.command_line import split_overrides
from sae_lens_sparsemax.training.config import TextRunnerConfig
from sae_lens_sparsemax.training.config_file import load_config
from tests.benchmark.forms import FORMS, config_of, label
from tests.benchmark.machine import add_machine_options, machine, use_machine
from tests.benchmark.training_step import SHARES, WARM_UP, measure

EPILOG = """\
examples:
  python -m tests.benchmark.training configs/smollm2_135m.yaml \\
      --model_name path/to/SmolLM2-135M --dataset_path text.jsonl --sae.d_sae 24576
  python -m tests.benchmark.training configs/quickstart.yaml --only sparsemax one_pass topk batchtopk jumprelu
  python -m tests.benchmark.training configs/quickstart.yaml --device cuda --screening always

The configuration is run for a few steps, in a process of its own for each form of its SAE:
  sparsemax   as the file has it ("the default" where its gate is the default one)
  one_pass    the same with one pass and no refinement
  topk, batchtopk, jumprelu   SAELens's, of the same size; k is sae.target_l0, TopK's activations are sparse
  naive       one pass of sparsemax, as its equations are written
Other options replace keys of the file, as for 'sparsemax-sae train'.

The time of a step is a median; the shares are those of all steps after the first three, with the filling of the buffer
spread over its activations. Before each step, and outside its time, gates and JumpReLU's thresholds are set so that
sae.target_l0 concepts are active on average; L0 is what came of it. In so few steps no concept counts as dead, which
spares TopK and BatchTopK their loss for such concepts. On a GPU each part is waited for, and memory is that of tensors,
the language model's with them; on the CPU it is that of the process.
"""


def main(arguments: list[str] | None = None) -> None:
    """Measure each form in a process of its own and print a table."""
    parser = _parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        words, overrides = split_overrides(words, parser._option_string_actions)
        args = parser.parse_args(words)
        cfg = _configuration(args, overrides)
    except ValueError as error:
        parser.error(str(error))
    use_machine(str(cfg.device), args.screening, args.threads)
    if args.form:
        sys.stdout.write("\n" + json.dumps(measure(cfg, args.form, args.steps)) + "\n")
        return
    same = [args.config, f"--steps={args.steps}", f"--screening={args.screening}"]
    same += [f"--threads={args.threads}"] if args.threads else []
    same += [f"--set={key}={value}" for key, value in overrides.items()]
    rows = []
    for form in args.only:
        command = [sys.executable, "-m", "tests.benchmark.training", *same, "--form", form]
        done = subprocess.run(command, stdout=subprocess.PIPE)
        if done.returncode:
            raise SystemExit(done.returncode)
        rows.append((label(form, cfg.sae), json.loads(done.stdout.decode().strip().splitlines()[-1])))
        # Forms take a while; who stops early has those that are done.
        sys.stderr.write(as_table(rows[-1:]) + "\n")
    size = f"{cfg.train_batch_size_tokens:,} tokens a step, {cfg.sae.d_sae:,} concepts"
    sys.stdout.write(f"{machine(str(cfg.device))}; {size}\n{as_table(rows)}\n")


def _configuration(args: argparse.Namespace, overrides: dict[str, Any]) -> TextRunnerConfig[Any]:
    """The file's, refused before anything is run if it is of another kind or a form cannot be made of it."""
    if args.steps <= WARM_UP:
        raise ValueError(f"--steps must be larger than {WARM_UP}, got {args.steps}")
    runner, cfg = load_config(args.config, overrides)
    if runner != "language_model" or not isinstance(cfg.sae, SparsemaxTrainingSAEConfig):
        found = f"runner {runner!r} and architecture {cfg.sae.architecture()!r}"
        raise ValueError(f"config must be a text run of a sparsemax SAE, got {found}")
    for form in [args.form] if args.form else args.only:
        config_of(form, cfg.sae)
    return cfg


def as_table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Markdown: what a step costs in each form, and the shares of the time between two steps."""
    cells = (
        [
            name,
            f"{1e3 * row['step_seconds']:.{0 if row['step_seconds'] > 0.02 else 1}f} ms",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['peak_gb']:.2f} GB",
            f"{row['l0']:.1f}",
            *(f"{row['shares'][share]:.0%}" for share in SHARES),
        ]
        for name, row in rows
    )
    return markdown_table(["form", "SAE step", "tokens/s with the model", "peak memory", "L0", *SHARES], cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmark.training",
        description="Time and memory of whole training steps on a language model, with this library's SAE and others.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file of a text run, or the name of a recipe")
    parser.add_argument("--steps", type=int, default=20, help="steps per form (default 20)")
    parser.add_argument("--only", choices=list(FORMS), nargs="+", default=["sparsemax", "naive"], help="forms")
    parser.add_argument("--form", choices=list(FORMS), help="measure one form in this process and print JSON")
    add_machine_options(parser)
    return parser


if __name__ == "__main__":
    main()
