"""The columns of a table: measures of a suite by their dotted names, those that there are and those that were found."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_type_hints

from sae_lens_sparsemax.evaluation.settings import TextSuiteSettings, VisionSuiteSettings
from sae_lens_sparsemax.evaluation.suite.text import text_results
from sae_lens_sparsemax.evaluation.suite.vision import vision_results
from sae_lens_sparsemax.evaluation.zero_shot import Condition, MaskedAccuracy, conditions
from sae_lens_sparsemax.settings.sentences import listed, must_be, must_be_one_of


def check_columns(
    columns: Mapping[str, str], groups: Collection[str], settings: TextSuiteSettings | VisionSuiteSettings
) -> None:
    """See that every column is a number that the groups of a suite will hold.

    Args:
        columns: heading to dotted name.
        groups: those that are measured; none for all of the suite.
        settings: what the suite measures on.

    Raises:
        ValueError: a group that the suite has not, or a column that no group will hold.
    """
    is_text = isinstance(settings, TextSuiteSettings)
    results = text_results(settings) if is_text else vision_results()
    for group in groups:
        if group not in results:
            raise must_be_one_of("groups", group, results)
    measured = groups or results
    names = [name for group in measured for name in _names(group, results[group], settings)]
    for heading, name in columns.items():
        if name not in names:
            near = [each for each in names if each.startswith(name)] or names
            raise must_be(f"columns.{heading}", f"a measure of what is measured ({listed(measured)})", name, near)


def _names(place: str, kind: Any, settings: TextSuiteSettings | VisionSuiteSettings) -> Iterator[str]:
    """The dotted name of every number in a result: of a dataclass, of a mapping of them, or a number itself."""
    if isinstance(kind, Mapping):
        inner = kind
    elif dataclasses.is_dataclass(kind):
        inner = get_type_hints(kind)
    elif kind == list[MaskedAccuracy] and isinstance(settings, VisionSuiteSettings):
        place = place.rpartition(".")[0]
        accuracy = get_type_hints(MaskedAccuracy)["accuracy"]
        inner = {_dotted(each): accuracy for each in conditions(settings.n_concepts, settings.concepts)}
    else:
        if kind in (int, float, float | None):
            yield place
        return
    for key, each in inner.items():
        yield from _names(f"{place}.{key}", each, settings)


def _dotted(condition: Condition) -> str:
    """Of masked classification, `on_5.oracle.top`: switch and n, whose class decides, and which concepts."""
    return f"{condition.switch}_{condition.n}.{condition.mask}.{condition.concepts}"


def flat(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a suite's groups hold by its dotted name, such as `zero_shot.zero_shot.on_5.oracle.top.classes`."""
    found: dict[str, Any] = {}

    def walk(place: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{place}.{key}" if place else key, inner)
        elif place.endswith(".masked"):
            for entry in value:
                condition = Condition(*(entry[name] for name in Condition._fields))
                walk(f"{place.removesuffix('.masked')}.{_dotted(condition)}", entry["accuracy"])
        else:
            found[place] = value

    walk("", results)
    return found
