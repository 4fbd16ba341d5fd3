"""The valid name that a misspelt one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the member of ``valid`` most similar to ``name`` (ratio of matching letters), None if empty."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.0)
    return matches[0] if matches else None
