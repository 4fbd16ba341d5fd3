"""Class names and templates for the data sets of zero-shot classification, in the order of the labels.

A list of names in the wrong order costs nearly all accuracy and raises no error anywhere, so as little as
possible is left to lists: where a data set names its labels, the names come from there or are looked up by label;
where an ordered list is needed (ImageNet, whose own names are sets of synonyms), it is checked against the data
set's names, and two classes that changed places are enough to fail.

Lists of words, the shipped names or a file's, are what concepts are named from and single images classified with.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sae_lens_sparsemax.settings.sentences import Mistake, must_be, must_be_one_of
from sae_lens_sparsemax.settings.values import expanded

# Fraction of the names of a list that must share a word with the data set's own name of the same label. In the
# right order it is 0.9 for ImageNet; in a random one 0.02.
_MIN_AGREEMENT = 0.75

_MAX_WORDS = 50_000


@dataclass(frozen=True)
class ClassPrompts:
    """What zero-shot classification says of a data set's classes."""

    names: tuple[str, ...]
    """Name of each class, in the order of the labels."""
    templates: tuple[str, ...]
    """Texts with `{}` where a name goes."""


def class_prompts(dataset: str, label_names: Sequence[str] | None = None) -> ClassPrompts:
    """Names and templates of a data set.

    Args:
        dataset: One of `DATASETS`.
        label_names: The data set's own names of its labels, in their order, as `features["label"].names` of a
            Hugging Face data set or the sorted folder names of an image folder. Needed for all data sets but those
            with one order of labels everywhere (ImageNet, ImageNet-Sketch, Flowers102, OxfordPets).

    Raises:
        ValueError: If the data set is unknown, `label_names` are needed and missing, or they do not match the
            names, in which case the message shows the first that differ.
    """
    check_dataset(dataset)
    file = "imagenet" if dataset == "imagenet_sketch" else dataset
    table = json.loads(files(__name__).joinpath(f"{file}.json").read_text(encoding="utf-8"))
    templates = tuple(table["templates"])
    if "labels" not in table and "names" in table:
        names = table["names"]
        if label_names is not None:
            check_order(names, label_names, dataset)
    elif label_names is None:
        raise Mistake("label_names", f"must be given for {dataset}, whose labels are published in several orders")
    elif "labels" in table:
        names = _look_up(dict(zip(table["labels"], table["names"], strict=True)), label_names, dataset)
    else:
        names = [_FROM_LABEL[dataset](label) for label in label_names]
    return ClassPrompts(tuple(names), templates)


def check_dataset(dataset: str) -> None:
    """Raise `ValueError` unless there are names for this data set."""
    if dataset not in DATASETS:
        raise must_be_one_of("classes", dataset, DATASETS)


def check_order(names: Sequence[str], label_names: Sequence[str], dataset: str) -> None:
    """Check that an ordered list of names fits a data set's own names of its labels; raise `ValueError` if not.

    Most pairs must share a word, and no name may be missing at its own label and be found at another. WordNet
    ids (`n01440764`) carry no words; they fit if they are sorted, which is ImageNet's order.
    """
    if len(names) != len(label_names):
        raise ValueError(f"the labels must be the {len(names)} of {dataset}, got {len(label_names)}")
    if all(re.fullmatch(r"n\d{8}", label) for label in label_names):
        if list(label_names) != sorted(label_names):
            raise ValueError(f"the labels of {dataset} must be sorted where they are WordNet ids, got another order")
        return
    places: dict[str, list[int]] = {}
    for i, label in enumerate(label_names):
        for synonym in label.split(","):
            places.setdefault(_letters(synonym), []).append(i)
    differing = [i for i in range(len(names)) if not _agree(names[i], label_names[i])]
    # Two ImageNet classes share each of the names "missile" and "sunglasses", so those may be elsewhere too.
    moved = [i for i in differing if places.get(_letters(names[i])) and names.count(names[i]) == 1]
    if moved or len(differing) > (1 - _MIN_AGREEMENT) * len(names):
        shown = "; ".join(f"label {i} is {label_names[i]!r}, not {names[i]!r}" for i in (moved or differing)[:5])
        raise ValueError(f"the labels of this data set are not in the order of {dataset}'s class names: {shown}")


def _look_up(name_of_label: dict[str, str], label_names: Sequence[str], dataset: str) -> list[str]:
    known = {_letters(label): name for label, name in name_of_label.items()}
    # Data sets that carry the prompt names as labels already are taken as they are.
    known |= {_letters(name): name for name in name_of_label.values() if _letters(name) not in known}
    for label in label_names:
        if _letters(label) not in known:
            raise must_be_one_of(f"a label of {dataset}", label, name_of_label)
    return [known[_letters(label)] for label in label_names]


def _agree(name: str, label: str) -> bool:
    return any(_letters(name) == _letters(synonym) for synonym in label.split(",")) or bool(
        _words(name) & _words(label)
    )


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _words(name: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]{3,}", name.lower())}


def _spaced(label: str) -> str:
    return " ".join(re.split(r"[_\s]+", label.strip()))


def _without_initial(label: str) -> str:
    """`/a/apartment_building/outdoor` as `apartment building outdoor`."""
    return _spaced(re.sub(r"^/?[a-z]/", "", label).replace("/", " "))


def _camel_case(label: str) -> str:
    """`ApplyEyeMakeup` as `Apply Eye Makeup`."""
    return _spaced(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label))


_FROM_LABEL: dict[str, Callable[[str], str]] = {
    "food101": _spaced,
    "stanford_cars": _spaced,
    "fgvc_aircraft": _spaced,
    "dtd": _spaced,
    "sun397": _without_initial,
    "ucf101": _camel_case,
}

DATASETS = (
    "imagenet",
    "imagenet_sketch",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "flowers102",
    "food101",
    "fgvc_aircraft",
    "eurosat",
    "ucf101",
    "dtd",
    "sun397",
)


def shipped_words() -> list[str]:
    """All names of classes that the package carries (ImageNet, Caltech101, EuroSAT, Flowers102, ...), each once."""
    words: dict[str, None] = {}
    for file in sorted(files(__name__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            words |= dict.fromkeys(json.loads(file.read_text(encoding="utf-8")).get("names", []))
    return list(words)


def read_words(path: str | Path) -> list[str]:
    """Words or short phrases from a text file, one a line; empty lines and repetitions are left out.

    Raises:
        ValueError: no such file, no text in UTF-8, no words, or so many that the list must be something else.
    """
    try:
        lines = expanded(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The word list {str(path)!r} could not be read as text: {error}") from error
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise ValueError(f"The word list {str(path)!r} must hold words, one a line, got none.")
    if len(words) > _MAX_WORDS:
        raise ValueError(f"The word list {str(path)!r} must hold at most {_MAX_WORDS:,} words, got {len(words):,}.")
    return words


def require_known(tokenizer: Any, classes: list[str]) -> None:
    """Refuse classes of which a tokenizer cannot spell one.

    Raises:
        ValueError: naming the first.
    """
    known = set(known_words(tokenizer, classes))
    if unknown := [name for name in classes if name not in known]:
        raise must_be("classes", "words that the model's tokenizer knows", unknown[0])


def known_words(tokenizer: Any, words: list[str]) -> list[str]:
    """The words that a tokenizer can spell; the others would all be embedded as the same unknown token.

    Raises:
        ValueError: it can spell none.
    """
    unknown = tokenizer.unk_token_id
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    known = [word for word, tokens in zip(words, ids, strict=True) if tokens and unknown not in tokens]
    if not known:
        found = f"{len(words)} unknown ones, the first being {words[0]!r}"
        raise ValueError(f"The word list must hold words that the model's tokenizer knows, got {found}.")
    return known
