"""The command ``explore``: static pages that show what concepts fire on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

OPTIONS = None
HELP = "Write a folder of static pages that show what the concepts of a saved SAE fire on."
EPILOG = """\
examples:
  sparsemax-sae explore output/quickstart
  sparsemax-sae explore output/my_run --dataset wikitext103_test.txt --samples 5000
  sparsemax-sae explore output/mini_clip_cifar10 --output pages --encoder openai/clip-vit-large-patch14
  sparsemax-sae explore output/sparsemax --compare output/batchtopk

Open index.html of the folder in a browser: it needs no server and no network. Model, hook and data are read from
the SAE's metadata; options replace them. A command that was stopped goes on where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments."""
    parser.add_argument("path", help="folder of an SAE or checkpoint, or user/repository:id on the hub")
    parser.add_argument("--compare", nargs="+", default=[], metavar="PATH", help="more SAEs to show beside it")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to call them (default: parts of their paths)")
    parser.add_argument("--output", type=Path, help="folder to write (default: explore inside PATH)")
    parser.add_argument("--model", help="model name or local folder")
    parser.add_argument("--model-class", help="HookedTransformer, AutoModelForCausalLM, TransformerBridge or HookedViT")
    for name, text in (
        ("dataset", "hub id, or local file or folder"),
        ("dataset-split", "split of the data set"),
        ("dataset-config", "configuration of the data set"),
        ("text-column", "column with the text"),
        ("image-column", "column with the images"),
    ):
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument("--label-column", default="label", help="column with the images' classes (default label)")
    parser.add_argument(
        "--streaming", action="store_true", help="read the first images as they come, rather than download them all"
    )
    parser.add_argument("--context-size", type=int, help="tokens per context")
    parser.add_argument("--max-norm", type=float, help="leave out tokens whose activation has a larger norm (text)")
    parser.add_argument("--samples", type=int, help="images (default 5000) or contexts (default 2000) to read")
    parser.add_argument("--batch-size", type=int, default=32, help="images or contexts at a time (default 32)")
    parser.add_argument("--encoder", help="independent vision model to measure monosemanticity with")
    parser.add_argument("--words", help="file of words to guess concept names from, or 'shipped' (CLIP, SigLIP)")
    parser.add_argument("--examples", type=int, help="examples of each concept (default 12)")
    parser.add_argument("--showcase", type=int, default=24, help="images or contexts with their own page (default 24)")
    parser.add_argument("--megabytes", type=int, default=200, help="largest size of the folder per SAE (default 200)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or mps")


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:  # noqa: ARG001  the same for all commands
    """Explore as the options say; returns the exit status."""
    from sae_lens_sparsemax.explore.run import explore
    from sae_lens_sparsemax.explore.settings import ExploreSettings

    settings = ExploreSettings(**{name: getattr(options, name) for name in ExploreSettings.__dataclass_fields__})
    inside = Path(options.path).expanduser()
    output = options.output or (inside / "explore" if inside.is_dir() else Path("output/explore"))
    page = explore([options.path, *options.compare], output, settings, names=options.names)
    print(f"\nOpen in a browser: {page}")
    return 0
