"""The command `explain`: a language model proposes labels of concepts, with scores."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens_sparsemax.settings.command_line import Group

IS_SHARED = False
HELP = "Let a language model propose labels of concepts, scored by detection on held-out examples."
USAGE = "SAE_OR_PAGES --explainer MODEL_OR_ADDRESS [--KEY VALUE ...] [--debug]"
STOPPED = "The same command goes on where it was."
EPILOG = """\
examples:
  sparsemax-sae explain output/my_run --explainer HuggingFaceTB/SmolLM2-1.7B-Instruct
  sparsemax-sae explain output/my_run --explainer http://localhost:11434/v1 --explainer_model llama3.1 --n_concepts 200
  sparsemax-sae explain output/my_run --explainer ~/models/qwen --concepts "[3, 17, 250]"

The SAE must have been explored; 'explore --examples 40' keeps enough to score on. Proposals are kept in
explanations.json beside the SAE (beside its pages where these lie elsewhere and are given) and shown in its pages with
their score: the balanced accuracy with which the model tells, by the label alone, held-out texts on which the concept
is active from others (0.5 is chance). A label in labels.csv in the SAE's folder (columns concept and label), which a
person writes, wins. A command that was stopped goes on where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser of the command its arguments."""
    parser.add_argument("path", help="folder or user/repository:id of an SAE that was explored, or folder of its pages")


def settings(words: Sequence[str]) -> list[Group]:  # noqa: ARG001  the same for all commands
    """Who proposes, and for which concepts."""
    from sae_lens_sparsemax.explore.explain import ExplainSettings
    from sae_lens_sparsemax.settings.command_line import Group

    return [Group("settings", ExplainSettings)]


def run(options: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Explain as the options say; returns the exit status."""
    from sae_lens_sparsemax.display.tables import number
    from sae_lens_sparsemax.explore.explain import ExplainSettings, beats_chance, explain
    from sae_lens_sparsemax.settings.checking import build
    from sae_lens_sparsemax.settings.command_line import apply_overrides

    found = explain(options.path, build(ExplainSettings, apply_overrides({}, overrides)))
    for concept, proposal in found.items():
        print(f"{concept:>7}  {number(proposal.score, 2):>5}  {proposal.label}")
    above = sum(proposal.score is not None and proposal.score > 0.5 for proposal in found.values())
    sure = sum(map(beats_chance, found.values()))
    print(f"{above} of {len(found)} labels score above 0.5; {sure} do what a coin does in fewer than 1 of 20 cases.")
    return 0
