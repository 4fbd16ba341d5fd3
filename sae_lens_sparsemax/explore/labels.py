"""What the concepts of an SAE are about: said by a person, proposed by a language model, or guessed.

In the SAE's folder, on disk or on the hub, `labels.csv` is a person's, with the columns `concept` and `label`, and is
never written here; `explanations.json` holds what `explain` proposes, with scores; and what `explore` guessed stands in
its pages. A person's label wins.
"""

import csv
import logging
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from sae_lens_sparsemax.explore.explored import Explored, is_same_decoder
from sae_lens_sparsemax.explore.pages.scripts import script
from sae_lens_sparsemax.files import atomic_file, read_object, reading, reason
from sae_lens_sparsemax.models.saved_saes import place_of
from sae_lens_sparsemax.settings.sentences import must_be
from sae_lens_sparsemax.settings.values import expanded

logger = logging.getLogger(__name__)
OWN = "labels.csv"
"""A person's labels."""
PROPOSED = "explanations.json"
"""Those that a language model proposed."""
_CHANCE = 0.5
_FURTHER = "what follows"


class Label(NamedTuple):
    """What a concept is about, and who says so."""

    text: str
    by: str
    """`"person"`, the language model, or `"explore"`: tokens or classes that it fires on most."""
    score: float | None = None
    """Of a proposal: its balanced accuracy at telling where the concept is active, 0.5 being chance."""


def labels_of(source: Path | str, pages: Explored | None = None) -> dict[int, Label]:
    """The best label of each concept that has one.

    Args:
        source: the folder of an SAE or of its pages, or `user/repository:id` on the hub.
        pages: its pages, whose guesses are taken where nobody says better, and what others said when they were written
            where their files are not at hand: pages may lie elsewhere, and hold several SAEs.

    Raises:
        ValueError: a file with labels is damaged.
    """
    folders = [*_downloaded(str(source)), place_of(source)]
    if pages is not None and pages.folder == folders[-1] and pages.number == 0:  # others' labels lie with themselves
        folders.append(pages.folder.parent)
    guessed = {} if pages is None else {c: Label(text, "explore") for c, text in pages.labels().items()}
    proposed = {c: label for each in folders for c, label in proposed_labels(each, pages).items()}
    own = {c: label for each in folders for c, label in own_labels(each).items()}
    kept = {} if pages is None else {int(c): Label(*each) for c, each in pages.table.get("said", {}).items()}
    if not any((each / PROPOSED).is_file() for each in folders):
        proposed = {c: label for c, label in kept.items() if label.by != "person"}
    if not any((each / OWN).is_file() for each in folders):
        own = {c: label for c, label in kept.items() if label.by == "person"}
    return guessed | proposed | own


def _downloaded(source: str) -> set[Path]:
    """The folder to which labels that lie beside an SAE on the hub are fetched; a hub that fails is warned of."""
    repo_id, colon, sae_id = source.partition(":")
    if not colon or repo_id.count("/") != 1 or expanded(source).exists():
        return set()
    found = set()
    for name in (OWN, PROPOSED):
        try:
            found.add(Path(hf_hub_download(repo_id, f"{sae_id}/{name}")).parent)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # the hub could not be asked
                logger.warning("Labels of %s are not shown, as the hub cannot be reached: %s", source, reason(error))
                break
        except (HfHubHTTPError, OSError) as error:
            logger.warning("Labels of %s are not shown, as the hub gives none: %s", source, reason(error))
            break
    return found


def shown_label(label: Label) -> str:
    """A label as pages and app show it: a proposal says that it is one, and how good."""
    if label.by in ("person", "explore"):
        return label.text
    return f"{label.text} (proposed" + (f", {label.score:.0%} right)" if label.score is not None else ")")


def shown_labels(source: Path | str, pages: Explored | None) -> dict[int, str]:
    """What pages and app show of each concept that has a label; a guess where a proposal is no better than chance."""
    return _shown(labels_of(source, pages), {} if pages is None else pages.labels())


def _shown(labels: dict[int, Label], guesses: dict[int, str]) -> dict[int, str]:
    def text(c: int, label: Label) -> str:
        is_proposal = label.by not in ("person", "explore")
        return guesses[c] if c in guesses and is_proposal and (label.score or 0) <= _CHANCE else shown_label(label)

    return {c: text(c, label) for c, label in labels.items()}


def show_labels(pages: Explored, source: Path | str) -> None:
    """Put the best label of each concept into the table of an SAE's pages; what `explore` guessed, and who said what,
    stay beside it."""
    guesses, labels = pages.table.get("guess", pages.table["label"]), labels_of(source, pages)
    best, said = _shown(labels, pages.labels()), {c: each for c, each in labels.items() if each.by != "explore"}
    pages.table |= {"label": [best.get(c, guess) for c, guess in enumerate(guesses)], "guess": guesses, "said": said}
    with atomic_file(pages.folder / "data" / f"{pages.number}/table.js") as new:
        new.write_text(script(f"{pages.number}/table", pages.table), encoding="ascii")


def own_labels(folder: Path) -> dict[int, Label]:
    """A person's labels, from `labels.csv`."""
    if not (path := folder / OWN).is_file():
        return {}
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, restkey=_FURTHER)
        if not {"concept", "label"} <= {*(rows.fieldnames or ())}:
            raise must_be("its first line", "concept,label", rows.fieldnames)
        labels = {}
        for row in rows:
            concept, text = (row["concept"] or "").strip(), row["label"]
            if not concept.isdecimal() or text is None or _FURTHER in row:
                wanted = "a concept's number, a comma and its label, in quotes if that has commas"
                raise must_be(f"its line {rows.line_num}", wanted, row)
            if text.strip():
                labels[int(concept)] = Label(text.strip(), "person")
        return labels


def proposed_labels(folder: Path, pages: Explored | None = None) -> dict[int, Label]:
    """What `explain` proposed, from `explanations.json`; nothing, with a warning, if it did so for another SAE."""
    if not (path := folder / PROPOSED).is_file():
        return {}
    values = read_object(path)
    with reading(path):
        if pages is not None and not is_same_decoder(values.get("probe"), pages.summary.get("probe")):
            logger.warning("The labels in %s were proposed for another SAE and are not shown.", path)
            return {}
        found = values["concepts"].items()
        return {int(c): Label(str(each["label"]), values["model"], each["score"]) for c, each in found if each["label"]}
