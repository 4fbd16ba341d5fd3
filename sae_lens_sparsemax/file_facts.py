"""What files hold, in short: for fingerprints of results that were computed from them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_HASHED_BYTES = 16 * 2**20


def file_facts(paths: Iterable[str | None]) -> dict[str, list[tuple[str, int, str]]]:
    """
    Name, size and hash of local files and of the files in local folders, by the path given.

    Part of a cache's fingerprint, so that a file that was replaced is noticed, and one that was only copied is not.
    Of large files both ends are hashed. Names that are no local path are left out.
    """
    facts = {}
    for given in paths:
        if given is not None and (path := Path(given)).exists():
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            facts[given] = [(f.name, f.stat().st_size, _hash_of_ends(f)) for f in files if f.is_file()]
    return facts


def _hash_of_ends(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        file.seek(max(file.tell(), path.stat().st_size - _HASHED_BYTES))
        digest.update(file.read())
    return digest.hexdigest()[:16]
