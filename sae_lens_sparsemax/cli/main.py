"""The command `sparsemax-sae`. It reads arguments, runs a command, and turns user mistakes into one line."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from typing_extensions import override

from sae_lens_sparsemax.cli import (
    app,
    cache_activations,
    compare,
    evaluate,
    explain,
    explore,
    export,
    quickstart,
    recipes,
    reproduce,
    suggest_k,
    train,
)

COMMANDS: dict[str, Any] = {
    "quickstart": quickstart,
    "recipes": recipes,
    "train": train,
    "cache-activations": cache_activations,
    "evaluate": evaluate,
    "explore": explore,
    "app": app,
    "explain": explain,
    "export": export,
    "compare": compare,
    "suggest-k": suggest_k,
    "reproduce": reproduce,
}
STOPPED = 130
"""The shell's status for a command ended by Ctrl-C."""

_LONGEST = 200
"""Letters of one word that an error shows."""

# What torch says, as a RuntimeError, where memory is asked for that there is not, or more than it can count.
_NO_MEMORY = ("can't allocate memory", "out of memory", "size calculation overflowed", "Overflow when unpacking long")

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names of glibc's malloc.h
_LARGEST = 2**31 - 1

_DESCRIPTION = "Train and evaluate sparse autoencoders with SAELens; the architecture 'sparsemax' is the default."
_EPILOG = """\
first steps:
  sparsemax-sae quickstart                       train and evaluate on an embedded model, no network
  sparsemax-sae quickstart --vision              the same on images
  sparsemax-sae recipes                          the trainings, comparisons and tables that come with the package
  sparsemax-sae train gpt2_small_openwebtext --dry_run
  sparsemax-sae evaluate output/quickstart
  sparsemax-sae explore output/quickstart        pages to look at its concepts
  sparsemax-sae app output/quickstart            try it on texts of your own
  sparsemax-sae compare synthetic
  sparsemax-sae reproduce table5 --small

'sparsemax-sae COMMAND --help' shows the options and examples of each command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 (what was asked cannot be done), 130 (stopped)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    try:
        return _run(words)
    except _stops():
        how = getattr(COMMANDS.get(words[0] if words else ""), "STOPPED", "")
        if os.environ.get("RANK", "0") == "0":
            print(f"Stopped. {how}".strip(), file=sys.stderr)
        return STOPPED
    except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY)
        if "--debug" in words or (isinstance(error, RuntimeError) and not is_memory):
            raise
        if is_memory:
            error = ValueError(f"There is not enough memory; a smaller d_sae or batch needs less ({_cause(error)})")
        message = " ".join(word if len(word) <= _LONGEST else f"{word[:_LONGEST]}…" for word in str(error).split())
        print(f"sparsemax-sae: error: {message}", file=sys.stderr)
        return 2


def _cause(error: BaseException) -> str:
    """An error's own words, without where in torch it was raised."""
    return str(error).rpartition("Allocator: ")[2].partition("\n")[0] or type(error).__name__


def _stops() -> tuple[type[BaseException], ...]:
    """What Ctrl-C raises; SAELens's trainer saves a checkpoint and raises its own."""
    from sae_lens.training._interruption import InterruptedException

    return KeyboardInterrupt, InterruptedException


def _run(words: list[str]) -> int:
    with _agreed(words):
        options, overrides = _read(words)
    return COMMANDS[options.command].run(options, overrides)


def _agreed(words: list[str]) -> AbstractContextManager[None]:
    """Of several processes that torchrun started, one says what is wrong with the words, and all end."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return nullcontext()
    from sae_lens_sparsemax.processes.together import join, require_one_process, together

    if words and not getattr(COMMANDS.get(words[0]), "IS_SHARED", True):
        require_one_process(f"the command {words[0]!r}")
    join()
    return together()


def _read(words: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """A command's own options, and the settings among the words by dotted key."""
    parser, commands = _parsers()
    given = words
    overrides: dict[str, Any] = {}
    command = COMMANDS.get(words[0]) if words else None
    if command is not None:
        from sae_lens_sparsemax.settings.checking import refuse_unknown_keys
        from sae_lens_sparsemax.settings.command_line import settings_help, split_overrides

        groups = command.settings(words[1:]) if hasattr(command, "settings") else []
        own = commands[words[0]]
        if {"-h", "--help"} & set(words):
            own.epilog = f"{settings_help(groups)}\n{own.epilog}"
        words, overrides = split_overrides(words, own._option_string_actions, groups)
        if not hasattr(command, "settings"):
            refuse_unknown_keys({f"--{key}": value for key, value in overrides.items()}, own._option_string_actions)
    options, unread = parser.parse_known_args(words)
    if getattr(options, "output_path", None) is not None:
        from sae_lens_sparsemax.settings.values import written_path

        options.output_path = Path(written_path("--output_path", options.output_path))
    if unread:
        _refuse_unread(unread[0], given, overrides, commands[options.command])
    return options, overrides


def _refuse_unread(word: str, given: list[str], overrides: Mapping[str, Any], own: argparse.ArgumentParser) -> NoReturn:
    """Say what is wrong with a word that nothing takes: most often it was meant as the value of what is before it."""
    from sae_lens_sparsemax.settings.sentences import must_be

    for option, following in pairwise(given):
        if following != word:
            continue
        if overrides.get(option.removeprefix("--")) is True:
            raise must_be(option, "true or false", word)
        flag = own._option_string_actions.get(option)
        if flag is not None and flag.nargs == 0:
            raise must_be(option, "given without a value", word)
    own.error(f"unrecognized arguments: {word}")


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next allocation, however large; for processes that train.

    Scores and gradients of a wide dictionary are tens of megabytes that are freed and asked for again in every step.
    glibc hands pieces of that size back to the system at once, which then clears every page anew: up to a fifth of a
    step. The process stays at its peak size in return.

    Returns:
        Whether it took effect: false where malloc is not glibc's, and where the user's environment tunes it already.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _LARGEST))


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are said like all others, in one line."""

    @override
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} ('{self.prog} --help' shows what there is)")


def _parsers() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser of everything, and those of the commands by name."""
    from sae_lens_sparsemax import __version__

    shared: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser("sparsemax-sae", description=_DESCRIPTION, epilog=_EPILOG, **shared)
    parser.add_argument("--version", action="version", version=f"sparsemax-sae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        # The keys that settings have are many: the line of usage names the command's own options alone.
        usage = f"sparsemax-sae {name} {command.USAGE}" if hasattr(command, "USAGE") else None
        sub = commands.add_parser(
            name, help=command.HELP, description=command.HELP, epilog=command.EPILOG, usage=usage, **shared
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_arguments(sub)
    return parser, commands.choices
