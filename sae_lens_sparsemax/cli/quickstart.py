"""The command ``quickstart``: the whole way from training to evaluation on what the package carries."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from sae_lens_sparsemax.display.tables import text_table

IS_SHARED = False
HELP = "Train and evaluate an SAE on a small embedded model; needs no network."
EPILOG = """\
examples:
  sparsemax-sae quickstart                     a language model on books and speeches, a minute or two
  sparsemax-sae quickstart --vision            a CLIP on drawings of coloured shapes
  sparsemax-sae explore output/quickstart      what the trained concepts fire on

It trains as the recipes 'quickstart' and 'vision/quickstart_vision' say, which 'train' takes too.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments."""
    parser.add_argument("--vision", action="store_true", help="a CLIP on drawn shapes in place of the language model")
    parser.add_argument("--output_path", help="folder (default output/quickstart or output/quickstart_vision)")


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:  # noqa: ARG001  the same for all commands
    """Run it; returns the exit status."""
    from sae_lens_sparsemax.cli.quickstart_runs import quickstart

    what = "vision" if options.vision else "text"
    folder, table, seconds = quickstart(what, options.output_path)
    print(f"\nTrained, saved, loaded back and evaluated on held-out {_HELD_OUT[what]} in {seconds:.0f} s.")
    print(text_table(table))
    print(f"""\
In {folder}:
  sae_weights.safetensors, cfg.json    the SAE: sae_lens.SAE.load_from_disk("{folder}")
  metrics.jsonl, training_curves.png   the course of training
  l0_histogram.png                     how many concepts single tokens use
  evaluation.json                      every metric
Run next:
{_NEXT[what].format(folder=shlex.quote(str(folder)))}
  sparsemax-sae recipes                trainings of larger models, to start your own from""")
    return 0


_HELD_OUT = {"text": "text", "vision": "drawings"}
_LOOK = "  sparsemax-sae explore {folder}\n  sparsemax-sae app {folder}"
_NEXT = {
    "text": "  sparsemax-sae evaluate {folder} --dataset_split validation\n" + _LOOK,
    "vision": _LOOK + "\n  sparsemax-sae train vision/clip_vit_b16_sparsemax --dry_run",
}
