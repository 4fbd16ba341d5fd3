"""The sentences in which a mistake is said: `NAME must be CONDITION, got VALUE`, with the nearest valid name.

A name that a setting had in an earlier version is refused by a sentence that gives the new one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

_LONGEST = 160
MOST_LISTED = 20

# Old name to new ones, of which the one that the settings at hand have is meant. A name with a dot is a key of a
# group that is gone.
_RENAMED: dict[str, tuple[str, ...]] = {
    "model": ("model_name",),
    "model_class": ("model_class_name",),
    "dataset": ("dataset_path",),
    "data": ("datasets", "dataset_path"),
    "counting_data": ("counting_dataset",),
    "training_data": ("dataset_path",),
    "evaluation_data": ("eval_datasets",),
    "output": ("output_path",),
}
for _group in ("data", "training_data"):
    for _key in ("path", "split", "config"):
        _RENAMED[f"{_group}.{_key}"] = (f"dataset_{_key}",)
    for _key in ("text_column", "image_column", "label_column", "streaming"):
        _RENAMED[f"{_group}.{_key}"] = (_key,)
# Keys of the group `images` that are now keys of their own.
_OUT_OF_IMAGES = {"training": "dataset_path", "evaluation": "eval_datasets"}


class Mistake(ValueError):
    """A setting that is wrong, by its name as seen from the group that it is in."""

    def __init__(self, name: str, rest: str, near: str = "") -> None:
        super().__init__(name, rest, near)
        self.name, self.rest, self.near = name, rest, near

    def __str__(self) -> str:
        return f"{self.name} {self.rest}" + (f"; did you mean {self.near}?" if self.near else "")

    def below(self, place: str) -> Mistake:
        """The same mistake with its name as seen from outside the group `place`."""
        if not place:
            return self
        name = f"{place}.{self.name}" if self.name else place
        return Mistake(name, self.rest, f"{place}.{self.near}" if self.near and "'" not in self.near else self.near)


def shown(value: Any) -> str:
    """A value as Python writes it, without its middle where it is long: a path is known by its end."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 + 1 :]}"


def nearest(name: str, valid: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The member of `valid` most similar to `name`, None if none shares `cutoff` of its letters or begins with it."""
    name, valid = str(name)[:200], list(valid)
    matches = difflib.get_close_matches(name, valid, n=1, cutoff=cutoff)
    return next(iter(matches), None) or next((each for each in valid if name and each.startswith(name)), None)


def similar_path(path: Path, is_right: Callable[[Path], bool]) -> str:
    """`; did you mean PATH?` with what lies beside `path`, has a similar name and is right; "" where nothing does."""
    try:
        names = {entry.stem: entry for entry in islice(path.parent.iterdir(), 1000)}
    except (OSError, ValueError):  # no such folder, or a name that no path can have
        return ""
    near = nearest(path.stem, [name for name, entry in names.items() if is_right(entry)])
    return f"; did you mean {str(names[near])!r}?" if near else ""


def must_be(name: str, condition: str, value: Any, valid: Iterable[str] = ()) -> Mistake:
    """The error for a setting `name` of the wrong `value`, with the nearest of the `valid` ones."""
    near = nearest(value, valid) if isinstance(value, str) else None
    return Mistake(name, f"must be {condition}, got {shown(value)}", repr(near) if near else "")


def must_be_one_of(name: str, value: Any, valid: Iterable[str]) -> Mistake:
    """The error for a setting `name` that is none of the names `valid`."""
    names = list(valid)
    return must_be(name, f"one of {listed(names)}", value, names)


def listed(names: Collection[str]) -> str:
    """The first of some names, with commas between."""
    return ", ".join(islice(names, MOST_LISTED)) + (", …" if len(names) > MOST_LISTED else "")


def new_name(key: str, value: Any, valid: Collection[str]) -> tuple[str, str] | None:
    """The old name, dotted where a group is gone, and the new one among `valid`; None if `key` is no old name."""
    olds = [*(f"{key}.{inner}" for inner in value), key] if isinstance(value, Mapping) else [key]
    for old in olds:
        for new in _RENAMED.get(old, ()):
            if new in valid:
                return old, new
    if key in _OUT_OF_IMAGES and "n_zero_shot_images" in valid:
        return key, f"{_OUT_OF_IMAGES[key]} (outside this group)"
    return None
