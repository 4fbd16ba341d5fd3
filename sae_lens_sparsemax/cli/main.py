"""The command ``sparsemax-sae``. It reads arguments, runs a command, and turns user mistakes into one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from sae_lens_sparsemax.cli import (
    STOPPED,
    app,
    cache_activations,
    compare,
    evaluate,
    explore,
    quickstart,
    reproduce,
    suggest_k,
    train,
)
from sae_lens_sparsemax.training.memory import keep_freed_memory

COMMANDS: dict[str, Any] = {
    "quickstart": quickstart,
    "train": train,
    "cache-activations": cache_activations,
    "evaluate": evaluate,
    "explore": explore,
    "app": app,
    "compare": compare,
    "suggest-k": suggest_k,
    "reproduce": reproduce,
}
_DESCRIPTION = "Train and evaluate sparse autoencoders with SAELens; the architecture 'sparsemax' is the default."
_EPILOG = """\
first steps:
  sparsemax-sae quickstart                       train and evaluate on an embedded model, no network
  sparsemax-sae quickstart --vision              the same on images
  sparsemax-sae train configs/gpt2_small_openwebtext.yaml --dry-run
  sparsemax-sae evaluate output/quickstart
  sparsemax-sae explore output/quickstart        pages to look at its concepts
  sparsemax-sae app output/quickstart            try it on texts of your own
  sparsemax-sae compare configs/compare/synthetic.yaml
  sparsemax-sae reproduce configs/paper/table5.yaml --small

'sparsemax-sae COMMAND --help' shows the options and examples of each command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 (system error), 2 (user mistake), 130 (stopped)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    keep_freed_memory()
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("Stopped; nothing was saved since the last checkpoint.", file=sys.stderr)
        return STOPPED
    except (ValueError, OSError) as error:
        if debug:
            raise
        message = " ".join(str(error).split())
        print(f"sparsemax-sae: error: {message}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _run(words: list[str]) -> int:
    overrides: dict[str, Any] = {}
    if words and words[0] in COMMANDS and COMMANDS[words[0]].OPTIONS is not None:
        from sae_lens_sparsemax.settings.overrides import split_overrides

        words, overrides = split_overrides(words, COMMANDS[words[0]].OPTIONS)
    options = _parser().parse_args(words)
    return COMMANDS[options.command].run(options, overrides)


def _parser() -> argparse.ArgumentParser:
    from sae_lens_sparsemax import __version__

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "sparsemax-sae", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=raw, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"sparsemax-sae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            epilog=command.EPILOG,
            formatter_class=raw,
            allow_abbrev=False,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_arguments(sub)
    return parser
