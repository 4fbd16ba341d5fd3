"""The error for a name that does not exist."""

import difflib
from collections.abc import Iterable


def unknown_name(what: str, name: str, valid: Iterable[str], where: str) -> str:
    """The sentence for a name that does not exist, with the nearest that does."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(names)}"
    return f"{name!r} in {where} is no {what}; {hint}"
