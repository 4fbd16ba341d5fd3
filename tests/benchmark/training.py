"""python -m tests.benchmark.training: what whole training steps cost, and where the time goes."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any

import torch
from typing_extensions import override

from sae_lens_sparsemax.cli.main import keep_freed_memory
from sae_lens_sparsemax.display.tables import markdown_table
from sae_lens_sparsemax.sae.training import SparsemaxTrainingSAE
from sae_lens_sparsemax.settings.command_line import split_overrides
from sae_lens_sparsemax.training.config_file import load_config
from sae_lens_sparsemax.training.text_runner import TextTrainingRunner
from tests.benchmark.measure import peak_bytes
from tests.benchmark.naive import NaiveTrainingSAE

EPILOG = """\
example:
  python -m tests.benchmark.training configs/smollm2_135m.yaml \\
      --model_name path/to/SmolLM2-135M --dataset_path text.jsonl --sae.d_sae 24576

The configuration is run for a few steps, in a process of its own for each form: this library's training pass, and the
equations as written. Options replace keys of the file, as for 'sparsemax-sae train'. The time of a step is a median;
the shares are those of all steps after the first three, with the filling of the buffer spread over its activations.
"""
FORMS = {"sparsemax": SparsemaxTrainingSAE, "naive": NaiveTrainingSAE}
SHARES = ("model", "forward", "backward", "optimizer", "other")
_WARM_UP = 3


class _TimedRunner(TextTrainingRunner):
    """Trains without saving or logging, and takes the time of the parts of each step."""

    seconds: dict[str, list[float]]

    @override
    def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
        self.seconds = defaultdict(list)
        provider, sae, optimizer = trainer.data_provider, trainer.sae, trainer.optimizer

        class Timed:
            def __iter__(self) -> Timed:
                return self

            def __next__(self) -> torch.Tensor:
                return run("model", next, provider)

        def run(name: str, function: Any, *arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **named)
            self.seconds[name].append(time.perf_counter() - start)
            return result

        forward, update, step = sae.training_forward_pass, optimizer.step, trainer.step
        backward = torch.Tensor.backward
        trainer.data_provider = Timed()
        sae.training_forward_pass = lambda *a, **k: run("forward", forward, *a, **k)
        optimizer.step = lambda *a, **k: run("optimizer", update, *a, **k)
        trainer.step = lambda batch: run("step", step, batch)
        torch.Tensor.backward = lambda *a, **k: run("backward", backward, *a, **k)  # type: ignore[method-assign]
        try:
            return super().run_trainer_with_interruption_handling(trainer)
        finally:
            torch.Tensor.backward = backward  # type: ignore[method-assign]


def measure(config: str, overrides: dict[str, Any], form: str, steps: int) -> dict[str, Any]:
    """Run `steps` steps of the configuration with one form of the SAE; median seconds, shares and peak memory."""
    keep_freed_memory()
    loaded = load_config(config, overrides)
    cfg = loaded.config
    cfg.training_tokens = steps * cfg.train_batch_size_tokens
    cfg.output_path = cfg.checkpoint_path = None
    cfg.n_checkpoints = 0
    cfg.lr_warm_up_steps = cfg.lr_decay_steps = 0
    runner = _TimedRunner(cfg)
    if form != "sparsemax":
        ours = runner.sae
        runner.sae = FORMS[form](ours.cfg)
        runner.sae.load_state_dict(ours.state_dict())
    runner.run()
    parts = {name: values[_WARM_UP:] for name, values in runner.seconds.items()}
    total = {name: sum(values) for name, values in parts.items()}
    # The first reads fill the buffer, so the model's time is spread over all steps, the first ones included.
    total["model"] = sum(runner.seconds["model"]) * len(parts["step"]) / steps
    total["other"] = total["step"] - total["forward"] - total["backward"] - total["optimizer"]
    whole = total["model"] + total["step"]
    return {
        "step_seconds": statistics.median(parts["step"]),
        "tokens_per_second": len(parts["step"]) * cfg.train_batch_size_tokens / whole,
        "peak_rss_gb": peak_bytes() / 1e9,
        "shares": {name: total[name] / whole for name in SHARES},
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure each form in a process of its own and print a table."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = {"--steps", "--form", "--only", "--help"}
    words, overrides = split_overrides(words, options)
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmark.training",
        description="Time and memory of whole training steps on a language model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="YAML file of a text run")
    parser.add_argument("--steps", type=int, default=20, help="steps per form (default 20)")
    parser.add_argument("--only", choices=list(FORMS), nargs="+", default=list(FORMS), help="forms to measure")
    parser.add_argument("--form", choices=list(FORMS), help="measure one form in this process and print JSON")
    args = parser.parse_args(words)
    if args.steps <= _WARM_UP:
        parser.error(f"--steps must be larger than {_WARM_UP}, got {args.steps}")
    if args.form:
        sys.stdout.write("\n" + json.dumps(measure(args.config, overrides, args.form, args.steps)) + "\n")
        return
    given = [f"--set={key}={value}" for key, value in overrides.items()]
    rows = []
    for form in args.only:
        command = [sys.executable, "-m", "tests.benchmark.training", args.config]
        done = subprocess.run([*command, "--steps", str(args.steps), "--form", form, *given], stdout=subprocess.PIPE)
        if done.returncode:
            raise SystemExit(done.returncode)
        rows.append((form, json.loads(done.stdout.decode().strip().splitlines()[-1])))
    sys.stdout.write(as_table(rows) + "\n")


def as_table(rows: list[tuple[str, dict[str, Any]]]) -> str:
    """Markdown: what a step costs in each form, and the shares of the time between two steps."""
    cells = (
        [
            form,
            f"{1e3 * row['step_seconds']:.0f} ms",
            f"{row['tokens_per_second']:.0f}",
            f"{row['peak_rss_gb']:.2f} GB",
            *(f"{row['shares'][name]:.0%}" for name in SHARES),
        ]
        for form, row in rows
    )
    return markdown_table(["form", "SAE step", "tokens/s with the model", "peak memory", *SHARES], cells)


if __name__ == "__main__":
    main()
