"""Labels proposed by a language model from a concept's examples, and scored by whether they tell where it is active.

The score is detection as EleutherAI's delphi defines it: a model is given the label and texts that were not shown when
it was made, as many on which the concept is active as on which it is not, unmarked; it says of each whether the concept
is active there; the score is its balanced accuracy, 0.5 being chance. But: texts are asked about one at a time; those
with the concept are the strongest that the pages keep, of which every second is held out, where delphi draws from all
quantiles; those without it come from the samples that have a page, of which all activations are known.
"""

import dataclasses
import logging
import random
import time
from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sae_lens_sparsemax.explore.explainers import LanguageModel, clean_label, open_explainer
from sae_lens_sparsemax.explore.explored import Explored, is_same_decoder, open_explored
from sae_lens_sparsemax.explore.labels import PROPOSED, own_labels, show_labels
from sae_lens_sparsemax.explore.pages.scripts import read_script
from sae_lens_sparsemax.files import only_writer, read_object, save_json
from sae_lens_sparsemax.models.saved_saes import place_of
from sae_lens_sparsemax.settings.sentences import must_be

logger = logging.getLogger(__name__)
_WINDOW = 32  # tokens of a text, as in delphi
_LABEL_TOKENS = 30
_SECONDS_BETWEEN_SAVES = 5.0
_FEWEST = 4  # examples; two to propose from and two to score on


@dataclasses.dataclass(frozen=True)
class ExplainSettings:
    """Who proposes labels, and for which concepts."""

    explainer: str | None = None
    """A text-generation model of Hugging Face (a folder or a name), or an OpenAI-compatible address of this machine,
    such as http://localhost:11434/v1."""
    explainer_model: str = ""
    """What the server at an address calls the model."""
    allow_remote: bool = False
    """Whether the address may be of another machine, which then sees texts of the data set."""
    concepts: list[int] | None = None
    """Which concepts; by default some, drawn at random from those with enough examples."""
    n_concepts: int = 50
    """How many are drawn."""
    n_shown: int = 8
    """Examples that a label is made from, at most."""
    n_scored: int = 10
    """Held-out texts with the concept, at most, and as many without it."""
    seed: int = 0
    """Of the draws."""
    overwrite: bool = False
    """Whether proposals of another model, or made with other settings, are replaced."""
    device: str = "cpu"
    """Where a model on disk runs."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A label and how well it tells where the concept is active."""

    label: str
    score: float | None
    """Balanced accuracy on the held-out texts, 0.5 being chance; None if it said nothing usable of them."""
    n: int
    """Held-out texts that it judged."""
    p_value: float | None
    """Chance of as many right answers by tossing a coin."""


def explain(
    source: str | Path, settings: ExplainSettings, *, model: LanguageModel | None = None, progress: bool = True
) -> dict[int, Proposal]:
    """Propose and score labels, and keep them in `explanations.json` beside the SAE and in its pages.

    Args:
        source: folder of an SAE that has been explored, or `user/repository:id`, or the folder of its pages, beside
            which the file is then.
        settings: who proposes, and for which concepts.
        model: who proposes, in place of `settings.explainer`.
        progress: whether to show a progress bar.

    Returns:
        All proposals in the file, also those of an earlier call that was interrupted, which are not made again.

    Raises:
        ValueError: there are no pages, they are of another SAE or of images, the model cannot be reached, a concept is
            none, or the file holds proposals made otherwise.
    """
    pages = open_explored(source)
    if pages is None:
        raise must_be("path", "an SAE that has been explored ('sparsemax-sae explore')", str(source))
    if pages.site["kind"] != "text":
        raise must_be("path", "an SAE on text, whose examples a language model can read", str(source))
    if model is None and settings.explainer is None:
        raise must_be("explainer", "a language model: its folder, its name, or an address", None)
    for name in ("n_concepts", "n_shown", "n_scored"):
        if getattr(settings, name) < 1:
            raise must_be(name, "at least 1", getattr(settings, name))
    concepts = _chosen(pages, settings)
    folder = place_of(source)
    folder = pages.folder.parent if folder == pages.folder else folder
    own_labels(folder)  # which are shown beside the proposals: damaged ones are refused before any is made
    with only_writer(folder, "path", ".explaining.lock"):
        model = model or open_explainer(
            settings.explainer or "",
            settings.explainer_model,
            allow_remote=settings.allow_remote,
            device=settings.device,
        )
        head: dict[str, Any] = {
            "model": model.name, "scored_by": "detection, balanced accuracy", "n_shown": settings.n_shown,
            "n_scored": settings.n_scored, "seed": settings.seed, "dataset": pages.summary["dataset"],
            "probe": pages.summary.get("probe"),
        }  # fmt: skip
        path = folder / PROPOSED
        found = _earlier(path, head, settings.overwrite)
        try:
            saved_at, without = time.monotonic(), _without(pages)
            for c in tqdm([c for c in concepts if c not in found], desc="Labels", disable=not progress):
                proposal = _proposal(pages, c, without, model, settings)
                if proposal.label:  # else another call asks again
                    found[c] = proposal
                if time.monotonic() - saved_at > _SECONDS_BETWEEN_SAVES:
                    save_json(head | {"concepts": found}, path)
                    saved_at = time.monotonic()
        finally:
            if found:
                save_json(head | {"concepts": found}, path)
                show_labels(pages, place_of(source))
        if unnamed := sum(c not in found for c in concepts):
            sentence = "%d of %d concepts got no label: %s answered without words, or thought for more than %d tokens."
            logger.warning(sentence, unnamed, len(concepts), model.name, _LABEL_TOKENS)
    return found


def beats_chance(proposal: Proposal) -> bool:
    """Whether a coin would seldom (in fewer than one of twenty cases) do as well as a label."""
    return proposal.p_value is not None and proposal.p_value < 0.05


def _chosen(pages: Explored, settings: ExplainSettings) -> list[int]:
    """Concepts to explain."""
    if settings.concepts is not None:
        for c in settings.concepts:
            if not 0 <= c < pages.d_sae:
                raise must_be("concepts", f"between 0 and {pages.d_sae - 1}", c)
            if len(pages.concept(c)["e"]) < _FEWEST:
                condition = f"ones with at least {_FEWEST} examples in the pages"
                raise must_be("concepts", condition, f"{c} with {len(pages.concept(c)['e'])}")
        return settings.concepts
    enough = [c for c in range(pages.d_sae) if pages.table["samples"][c] >= _FEWEST]
    enough = [c for c in enough if len(pages.concept(c)["e"]) >= _FEWEST] if len(enough) < 10_000 else enough
    random.Random(settings.seed).shuffle(enough)
    if not enough:
        raise must_be("path", f"an SAE with concepts of at least {_FEWEST} examples", "none")
    return sorted(enough[: settings.n_concepts])


def _earlier(path: Path, head: dict[str, Any], overwrite: bool) -> dict[int, Proposal]:
    """Proposals that the file holds, if they were made in the same way."""
    if not path.is_file() or overwrite:
        return {}
    values = read_object(path)
    concepts = values.pop("concepts", {})
    if not is_same_decoder(values.pop("probe", None), head["probe"]):
        raise ValueError(f"{str(path)!r} holds proposals for another SAE; overwrite replaces them.")
    differing = sorted(key for key in (values.keys() | head.keys()) - {"probe"} if values.get(key) != head.get(key))
    if differing:
        raise ValueError(f"{str(path)!r} holds proposals with another {differing[0]}; overwrite replaces them.")
    return {int(c): Proposal(**each) for c, each in concepts.items() if each["label"]}


def _proposal(
    pages: Explored, c: int, without: Sequence[tuple[frozenset[int], str]], model: LanguageModel, settings: Any
) -> Proposal:
    marked, plain = [], []
    for number, example in enumerate(pages.examples(c)):
        tokens, peak = pages.tokens(example.sample), example.peak
        first = max(0, min(peak - _WINDOW * 3 // 4, len(tokens) - _WINDOW))
        places = range(first, min(first + _WINDOW, len(tokens)))
        threshold = 0.5 * abs(example.acts[peak])
        if number % 2:
            plain.append("".join(tokens[i] for i in places))
        else:
            shown = (f"<<{tokens[i]}>>" if abs(example.acts[i]) >= threshold else tokens[i] for i in places)
            marked.append("".join(shown).replace(">><<", ""))
    draw = random.Random(f"{settings.seed} {c}")
    label = clean_label(model.answer(_label_question(marked[: settings.n_shown]), _LABEL_TOKENS))
    if not label:
        return Proposal("", None, 0, None)
    plain = draw.sample(plain, min(settings.n_scored, len(plain)))
    other = [text for active, text in without if c not in active]
    other = draw.sample(other, min(len(plain), len(other)))
    right: dict[bool, list[bool]] = {True: [], False: []}
    for text, is_active in draw.sample([*((t, True) for t in plain), *((t, False) for t in other)], len(plain + other)):
        said = model.says_yes(_detection_question(label, text))
        if said is not None:
            right[is_active].append(said == is_active)
    n = len(right[True]) + len(right[False])
    if not (right[True] and right[False]):
        return Proposal(label, None, n, None)
    score = sum(sum(each) / len(each) for each in right.values()) / 2
    n_right = sum(map(sum, right.values()))
    return Proposal(label, score, n, sum(comb(n, k) for k in range(n_right, n + 1)) / 2**n)


def _without(pages: Explored) -> list[tuple[frozenset[int], str]]:
    """Windows of the samples that have a page, and the concepts that are active in each."""
    found = []
    for sample in pages.site["showcase"]:
        tokens, known = pages.tokens(sample), read_script(pages.folder, f"{pages.number}/example-{sample}")
        active: list[set[int]] = [set() for _ in range(0, len(tokens), _WINDOW)]
        for token, c in zip(known["tokens"], known["concepts"], strict=True):
            active[token // _WINDOW].add(c)
        texts = ("".join(tokens[first : first + _WINDOW]) for first in range(0, len(tokens), _WINDOW))
        found += zip(map(frozenset, active), texts, strict=True)
    return found


def _label_question(texts: Sequence[str]) -> str:
    shown = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(texts, 1))
    return (
        "A feature of a language model is active on the words between << and >> in these texts:\n\n"
        f"{shown}\n\nSay in at most ten words what these words have in common. Say nothing else."
    )


def _detection_question(label: str, text: str) -> str:
    return (
        f"A feature of a language model is about: {label}\n\nText: {' '.join(text.split())}\n\n"
        "Does the text contain what the feature is about? Say Yes or No."
    )
