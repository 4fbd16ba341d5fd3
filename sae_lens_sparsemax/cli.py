"""The command ``sparsemax-sae``: train, evaluate, compare, quickstart. It reads arguments and prints results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens_sparsemax.memory import use_huge_pages

_DESCRIPTION = "Train and evaluate sparse autoencoders with SAELens; the architecture 'sparsemax' is the default."
_EPILOG = """\
first steps:
  sparsemax-sae quickstart                       train and evaluate on an embedded model, no network
  sparsemax-sae train configs/gpt2_small_openwebtext.yaml --dry-run
  sparsemax-sae evaluate output/quickstart
  sparsemax-sae compare configs/compare/synthetic.yaml

'sparsemax-sae COMMAND --help' shows the options and examples of each command.
"""
_TRAIN_EPILOG = """\
Every key of the file can be replaced on the command line, with its dotted name; values are YAML:
  sparsemax-sae train config.yaml --sae.target_l0 32 --lr 1e-3
  sparsemax-sae train config.yaml --set sae.architecture=topk --set sae.target_l0=null

Keys are the fields of SAELens's runner configs; 'sae:' holds the fields of the architecture's training
config, 'logger:' those of LoggingConfig. 'runner: synthetic' trains on SAELens's synthetic data.

A run writes to its 'output_path' the SAE, metrics.jsonl, training_curves.png and l0_histogram.png.
Ctrl-C saves a checkpoint first; continue with:
  sparsemax-sae train config.yaml --resume
"""
_EVALUATE_EPILOG = """\
examples:
  sparsemax-sae evaluate output/my_run
  sparsemax-sae evaluate output/my_run --dataset wikitext103_test.txt --batches 20
  sparsemax-sae evaluate output/my_run/checkpoints/2048000 --dataset-split validation
  sparsemax-sae evaluate user/repository:blocks.6.hook_resid_post --output results.json

Model, hook, data set and context are read from the SAE's metadata; options replace them. By default that
is the data the SAE was trained on: name a held-out data set or split for figures to report.
"""
_STOPPED = 130  # the shell's status for a command ended by Ctrl-C
_COMPARE_EPILOG = """\
examples:
  sparsemax-sae compare configs/compare/synthetic.yaml
  sparsemax-sae compare configs/compare/mini_clip.yaml --hook_name blocks.0.hook_resid_post
  sparsemax-sae compare configs/compare/smollm2.yaml --model_name path/to/SmolLM2-135M-Instruct \\
      --training_data.path text.jsonl --evaluation_data.wikitext103.path wikitext103_test.txt

Every arm trains on the same activations in the same order at every learning rate of its grid; the best rate by
held-out explained variance stands for it. Finished runs are kept: the same command goes on where it stopped.
The output folder gets table.md, table.csv, matched.csv (at the same L0), runs.csv and Pareto plots. Options replace
keys, as for 'train'.
"""
_OPTIONS = {
    "train": {"--resume", "--overwrite", "--dry-run", "--debug", "--help"},
    "compare": {"--debug", "--help"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 (system error), 2 (user mistake), 130 (stopped)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    use_huge_pages()
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("Stopped; nothing was saved since the last checkpoint.", file=sys.stderr)
        return _STOPPED
    except (ValueError, OSError) as error:
        if debug:
            raise
        message = " ".join(str(error).split())
        print(f"sparsemax-sae: error: {message}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _run(words: list[str]) -> int:
    overrides: dict[str, Any] = {}
    if words and words[0] in _OPTIONS:
        from sae_lens_sparsemax.overrides import split_overrides

        words, overrides = split_overrides(words, _OPTIONS[words[0]])
    options = _parser().parse_args(words)
    if options.command == "train":
        return _train(options, overrides)
    if options.command == "evaluate":
        return _evaluate(options)
    if options.command == "compare":
        return _compare(options, overrides)
    return _quickstart(options)


def _train(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from sae_lens.training._interruption import InterruptedException

    from sae_lens_sparsemax.config_file import load_config
    from sae_lens_sparsemax.training.checkpoints import prepare_output

    loaded = load_config(options.config, overrides)
    if options.dry_run:
        print(loaded.describe())
        return 0
    prepare_output(loaded.config, resume=options.resume, overwrite=options.overwrite)
    try:
        loaded.make_runner().run()
    except InterruptedException:
        print("Stopped. Continue with the same command and --resume.", file=sys.stderr)
        return _STOPPED
    output = loaded.config.output_path
    if output is not None:
        print(f"\nSaved to {output}: the SAE, metrics.jsonl, training_curves.png, l0_histogram.png")
        if loaded.runner == "language_model":
            print(f"Next:  sparsemax-sae evaluate {output}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from sae_lens_sparsemax.evaluation.results import save_json
    from sae_lens_sparsemax.harness import EvaluationSettings, evaluate_sae, load_sae, results_table

    names = EvaluationSettings.__dataclass_fields__
    settings = EvaluationSettings(**{name: getattr(options, name) for name in names})
    result = evaluate_sae(load_sae(options.path, options.device), settings)
    on = result["on"]
    print(f"\n{options.path} at {on['hook_name']} of {on['model']}, on {on['dataset']} ({on['dataset_split']})")
    _print_table(results_table(result))
    output = options.output or (Path(options.path) / "evaluation.json" if Path(options.path).is_dir() else None)
    if output is not None:
        print(f"All metrics: {save_json(result, output)}")
    return 0


def _compare(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    from sae_lens_sparsemax.compare.runner import compare_from_yaml

    table = compare_from_yaml(options.config, overrides)
    print(f"\n{table.read_text(encoding='utf-8')}\nTables and plots: {table.parent}")
    return 0


def _quickstart(options: argparse.Namespace) -> int:
    from sae_lens.training._interruption import InterruptedException

    from sae_lens_sparsemax.harness import results_table
    from sae_lens_sparsemax.quickstart import quickstart

    try:
        folder, evaluation, seconds = quickstart(options.output)
    except InterruptedException:
        print("Stopped.", file=sys.stderr)
        return _STOPPED
    print(f"\nTrained, saved, loaded back and evaluated on held-out text in {seconds:.0f} s.")
    _print_table(results_table(evaluation))
    print(f"""\
In {folder}:
  sae_weights.safetensors, cfg.json    the SAE: sae_lens.SAE.load_from_disk("{folder}")
  metrics.jsonl, training_curves.png   the course of training
  l0_histogram.png                     how many concepts single tokens use
  evaluation.json                      every metric
Run next:
  sparsemax-sae evaluate {folder} --dataset-split validation
  sparsemax-sae train --help           your own model and data, from a YAML file""")
    return 0


def _parser() -> argparse.ArgumentParser:
    from sae_lens_sparsemax import __version__

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "sparsemax-sae", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"sparsemax-sae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=raw, allow_abbrev=False
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    train = command("train", "Train an SAE as a YAML file says.", _TRAIN_EPILOG)
    train.add_argument("config", help="YAML file; see the folder configs/ for examples")
    train.add_argument("--KEY VALUE", dest="_", nargs="?", help="replace a key of the file, e.g. --sae.d_sae 8192")
    train.add_argument("--resume", action="store_true", help="continue from the newest checkpoint of this output")
    train.add_argument("--overwrite", action="store_true", help="delete checkpoints of an earlier run and start anew")
    train.add_argument("--dry-run", action="store_true", help="check the file and print the complete configuration")

    evaluate = command(
        "evaluate", "Evaluate a saved SAE of any SAELens architecture with every metric.", _EVALUATE_EPILOG
    )
    evaluate.add_argument("path", help="folder of an SAE or checkpoint, or user/repository:id on the hub")
    evaluate.add_argument("--model", help="model name or local folder")
    evaluate.add_argument("--model-class", help="HookedTransformer, AutoModelForCausalLM or TransformerBridge")
    evaluate.add_argument("--dataset", help="hub id, or local jsonl, json, parquet or txt file, or folder")
    evaluate.add_argument("--dataset-split", help="split of the data set")
    evaluate.add_argument("--dataset-config", help="configuration of the data set")
    evaluate.add_argument("--text-column", help="column with the text")
    evaluate.add_argument("--context-size", type=int, help="tokens per context")
    evaluate.add_argument("--batches", type=int, default=10, help="batches to evaluate (default 10)")
    evaluate.add_argument("--batch-size", type=int, default=16, help="contexts per batch (default 16)")
    evaluate.add_argument("--device", default="cpu", help="cpu (default), cuda or mps")
    evaluate.add_argument("--output", type=Path, help="JSON file (default: evaluation.json beside the SAE)")

    compare = command("compare", "Train architectures against each other on the same activations.", _COMPARE_EPILOG)
    compare.add_argument("config", help="YAML file; see configs/compare/ for examples")
    compare.add_argument("--KEY VALUE", dest="_", nargs="?", help="replace a key of the file, e.g. --steps 2000")

    quick = command("quickstart", "Train and evaluate an SAE on a small embedded language model; needs no network.")
    quick.add_argument("--output", default="output/quickstart", help="folder (default output/quickstart)")
    return parser


def _print_table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    line = "-" * (width + 2 + max(len(value) for _, value in rows))
    print("\n".join([line, *(f"{name:<{width}}  {value}" for name, value in rows), line]))
