"""Ways in which files come to harm, drawn at random."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def flip(path: Path, draw: random.Random) -> None:
    """Up to eight bits of a file turned around."""
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 2, 8))):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.choice((0, draw.randrange(len(content) + 1), max(0, len(content) - 1)))])


def append(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.choice((b"\0", b"\n\n{", b"}", draw.randbytes(100))))


def blank(path: Path, draw: random.Random) -> None:
    """A block of zeros, as a crashed file system leaves."""
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content) + 1)
    content[start : start + 64] = bytes(len(content[start : start + 64]))
    path.write_bytes(bytes(content))


def retype(path: Path, draw: random.Random) -> None:
    """A value in JSON, or the whole of it, replaced by one of another type; other files are flipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
        number = draw.randrange(len(lines))
        lines[number] = json.dumps(_retyped(json.loads(lines[number]), draw)).replace('"DEEP"', "[" * 9999 + "]" * 9999)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except ValueError:
        flip(path, draw)


def _retyped(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        how = draw.random()
        if how < 0.1:
            return {name: item for name, item in value.items() if name != key}
        if how < 0.2:
            return value | {"unknown": value[key]}
        return value | {key: _retyped(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        how = draw.random()
        if how < 0.2:
            return [*value, value[place]]
        if how < 0.4:
            return value[::-1]
        return [*value[:place], _retyped(value[place], draw), *value[place + 1 :]]
    numbers = (-1, 0, 0.5, 10**30, float("inf"), float("nan"))
    return draw.choice((*numbers, None, True, "x", "../x", "", [], {}, [None], "DEEP"))


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def folder_instead(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def swap(path: Path, draw: random.Random) -> None:
    """Two files of a folder change their names."""
    other = draw.choice([file for file in sorted(path.parent.iterdir()) if file.is_file()])
    content = path.read_bytes()
    shutil.copyfile(other, path) if other != path else None
    other.write_bytes(content)


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    flip, flip, flip, truncate, append, blank, retype, retype, retype, delete, folder_instead, swap,
)  # fmt: skip


def harm(folder: Path, draw: random.Random) -> str:
    """Do damage to one file below a folder; returns to which, and what."""
    path = draw.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    damage = draw.choice(DAMAGES)
    damage(path, draw)
    return f"{damage.__name__} {path.relative_to(folder)}"
