"""The command ``app``: a page to try an SAE on one's own images or texts."""

from __future__ import annotations

import argparse
from typing import Any

OPTIONS = None
HELP = "Open a page to try a saved SAE on single images or texts, and to switch concepts off or up."
EPILOG = """\
examples:
  sparsemax-sae app output/quickstart
  sparsemax-sae app output/mini_clip_cifar10 --words classes.txt

The page is served to browsers on this machine alone, until Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments."""
    parser.add_argument("path", help="folder of an SAE or checkpoint, or user/repository:id on the hub")
    parser.add_argument("--model", help="model name or local folder")
    parser.add_argument("--model-class", help="HookedTransformer, AutoModelForCausalLM, TransformerBridge or HookedViT")
    parser.add_argument("--words", help="text file with the classes for CLIP to choose from, one a line")
    parser.add_argument("--port", type=int, default=7860, help="port on this machine (default 7860; 0 for any)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or mps")


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:  # noqa: ARG001  the same for all commands
    """Serve the page until Ctrl-C; returns the exit status."""
    from sae_lens_sparsemax.explore.app.opening import open_session
    from sae_lens_sparsemax.explore.app.server import AppServer

    session = open_session(
        options.path, model=options.model, model_class=options.model_class, words=options.words, device=options.device
    )
    with AppServer(session, options.path, options.port) as server:
        print(f"Open in a browser: {server.url}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nEnded.")
    return 0
