"""The command `app`: a page to try an SAE on one's own images or texts."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_sparsemax.settings.command_line import Group

IS_SHARED = False
HELP = "Open a page to try a saved SAE on single images or texts, and to switch concepts off or up."
USAGE = "SAE [--KEY VALUE ...] [--debug]"
EPILOG = """\
examples:
  sparsemax-sae app output/quickstart
  sparsemax-sae app output/mini_clip_cifar10 --words classes.txt
  sparsemax-sae app user/repository:sae_id

It shows what explore wrote of the SAE, or runs that on a few samples when asked, to browsers on this machine alone,
until Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments."""
    parser.add_argument("path", help="folder of an SAE or checkpoint, or user/repository:id on the hub")


def settings(words: Sequence[str]) -> list[Group]:  # noqa: ARG001  the same for all commands
    """What to try the SAE with."""
    from sae_lens_sparsemax.explore.settings import AppSettings
    from sae_lens_sparsemax.settings.command_line import Group

    return [Group("settings", AppSettings)]


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Serve the page until Ctrl-C; returns the exit status."""
    from sae_lens_sparsemax.explore.app.gathering import Gathering
    from sae_lens_sparsemax.explore.app.server import AppServer, listen
    from sae_lens_sparsemax.explore.app.session import open_session
    from sae_lens_sparsemax.explore.settings import AppSettings
    from sae_lens_sparsemax.settings.checking import build
    from sae_lens_sparsemax.settings.command_line import apply_overrides

    given = build(AppSettings, apply_overrides({}, overrides))
    with listen(given.port) as listener:
        session = open_session(options.path, given)
        gathering = Gathering(options.path, session, given) if session.pages is None else None
        server = AppServer(session, options.path, listener, gathering)
        if gathering is not None:
            explore = shlex.join(["sparsemax-sae", "explore", options.path])
            print(f"The page gathers examples of each concept when asked; for more of them first: {explore}")
        print(f"Open in a browser: {server.url}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve()
        except KeyboardInterrupt:
            print("\nEnded.")
    return 0
