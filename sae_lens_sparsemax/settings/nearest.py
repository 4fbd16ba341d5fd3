"""The valid name that a misspelt one was probably meant to be, and the sentence that says so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the member of ``valid`` most similar to ``name`` (ratio of matching letters), None if empty."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.0)
    return matches[0] if matches else None


def unknown_name(what: str, name: str, valid: Iterable[str], where: str) -> str:
    """The sentence for a name that does not exist, with the nearest that does, or all if none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(names)}"
    return f"{name!r} in {where} is no {what}; {hint}"
