"""What the concepts of an SAE are about: said by a person, proposed by a language model, or guessed.

In the SAE's folder, on disk or on the hub, `labels.csv` is a person's, with the columns `concept` and `label`, and is
never written here; `explanations.json` holds what `explain` proposes, with scores; and what `explore` guessed stands in
its pages. A person's label wins.
"""

import contextlib
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from sae_lens_sparsemax.explore.explored import Explored, find_explored
from sae_lens_sparsemax.explore.pages.scripts import script
from sae_lens_sparsemax.files import atomic_file, read_object, reading
from sae_lens_sparsemax.settings.sentences import must_be

OWN = "labels.csv"
"""A person's labels."""
PROPOSED = "explanations.json"
"""Those that a language model proposed."""


class Label(NamedTuple):
    """What a concept is about, and who says so."""

    text: str
    by: str
    """`"person"`, the language model, or `"explore"`: tokens or classes that it fires on most."""
    score: float | None = None
    """Of a proposal: its balanced accuracy at telling where the concept is active, 0.5 being chance."""


def labels_of(source: Path | str) -> dict[int, Label]:
    """The best label of each concept that has one, from the folder of an SAE or of its pages, or `user/repository:id`.

    Raises:
        ValueError: a file with labels is damaged.
    """
    folder = _downloaded(str(source))
    pages = find_explored(folder)
    guessed = {} if pages is None else {c: Label(text, "explore") for c, text in pages.labels().items()}
    folders = dict.fromkeys([folder, folder if pages is None else pages.folder.parent])
    proposed = {c: label for each in folders for c, label in proposed_labels(each).items()}
    return guessed | proposed | {c: label for each in folders for c, label in own_labels(each).items()}


def _downloaded(source: str) -> Path:
    """The folder that may hold labels, to which those of an SAE on the hub are fetched."""
    folder, (repo_id, colon, sae_id) = Path(source).expanduser(), source.partition(":")
    if folder.exists() or not colon or repo_id.count("/") != 1:
        return folder
    for name in (OWN, PROPOSED):
        with contextlib.suppress(EntryNotFoundError, HfHubHTTPError):
            folder = Path(hf_hub_download(repo_id, f"{sae_id}/{name}")).parent
    return folder


def shown_label(label: Label) -> str:
    """A label as pages and app show it: a proposal says that it is one, and how good."""
    if label.by in ("person", "explore"):
        return label.text
    return f"{label.text} (proposed" + (f", {label.score:.0%} right)" if label.score is not None else ")")


def over_guesses(source: Path | str, guessed: Mapping[int, str]) -> dict[int, str]:
    """What is shown of each concept: what lies beside its SAE if more than a guess, over what was guessed."""
    return {**guessed, **{c: shown_label(label) for c, label in labels_of(source).items() if label.by != "explore"}}


def show_labels(pages: Explored, source: Path | str) -> None:
    """Put the best label of each concept into the table of an SAE's pages; what `explore` guessed stays beside it."""
    guesses = pages.table.get("guess", pages.table["label"])
    shown = over_guesses(source, dict(enumerate(guesses)))
    pages.table |= {"label": [shown[c] for c in range(len(guesses))], "guess": guesses}
    with atomic_file(pages.folder / "data" / f"{pages.number}/table.js") as new:
        new.write_text(script(f"{pages.number}/table", pages.table), encoding="ascii")


def own_labels(folder: Path) -> dict[int, Label]:
    """A person's labels, from `labels.csv`."""
    if not (path := folder / OWN).is_file():
        return {}
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not {"concept", "label"} <= {*(rows.fieldnames or ())}:
            raise must_be("its first line", "concept,label", rows.fieldnames)
        return {int(row["concept"]): Label(row["label"].strip(), "person") for row in rows if row["label"].strip()}


def proposed_labels(folder: Path) -> dict[int, Label]:
    """What `explain` proposed, from `explanations.json`."""
    if not (path := folder / PROPOSED).is_file():
        return {}
    values = read_object(path)
    with reading(path):
        found = values["concepts"].items()
        return {int(c): Label(str(each["label"]), values["model"], each["score"]) for c, each in found if each["label"]}
