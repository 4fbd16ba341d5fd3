"""Data as JavaScript files: a page opened from disk may load scripts, but read no other file."""

import json
import math
from pathlib import Path
from typing import Any


def write_script(folder: Path, name: str, payload: Any) -> int:
    """
    Write data/NAME.js, which hands its payload to `explorer.receive`.

    The file is pure ASCII and holds neither `<` nor `>` nor `&`, so nothing in it can end a script or begin markup,
    wherever it is put.

    Returns:
        Its size in bytes.
    """
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    script = f"explorer.receive({json.dumps(name)},{text});\n"
    path.write_text(script, encoding="ascii")
    return len(script)


def rounded(value: float, digits: int = 4) -> float | int | None:
    """A number with a few significant digits, as short as JSON can have it; None for NaN and infinity."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
