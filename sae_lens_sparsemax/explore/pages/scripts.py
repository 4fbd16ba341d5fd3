"""Data as JavaScript files, how activations are written in them, and how many examples fit into a folder.

A page opened from disk may load scripts, but read no other file.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sae_lens_sparsemax.explore.samples import LEVELS, TopExamples
from sae_lens_sparsemax.files import reading

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
FULL = 61
# Measured on pages of 1,000 to 49,152 concepts: what a concept takes without its examples, and what an example
# takes besides its active tokens, at two characters each.
_BYTES_PER_CONCEPT = 900
_BYTES_PER_EXAMPLE = 40
_BYTES_PER_TOKEN = 2
# What it takes once more where texts can be searched, besides its active tokens again.
_BYTES_PER_SEARCHED = 17
_ENCODED_AT_ONCE = 4096


def write_script(folder: Path, name: str, payload: Any) -> int:
    """Write data/NAME.js as `script` has it.

    Returns:
        Its size in bytes.
    """
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_text(script(name, payload), encoding="ascii")


def script(name: str, payload: Any) -> str:
    """A script that hands its payload to `explorer.receive`.

    It is pure ASCII and holds neither `<` nor `>` nor `&`, so nothing in it can end a script or begin markup, wherever
    it is put.
    """
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"explorer.receive({json.dumps(name)},{text});\n"


def read_script(folder: Path, name: str) -> Any:
    """The payload of data/NAME.js, as `write_script` wrote it.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    path = folder / "data" / f"{name}.js"
    with reading(path):
        return json.loads(path.read_text(encoding="ascii").removeprefix(f"explorer.receive({json.dumps(name)},")[:-3])


def rounded(value: float, digits: int = 4) -> float | int | None:
    """A number with a few significant digits, as short as JSON can have it; None for NaN and infinity."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def encode_levels(levels: torch.Tensor) -> str:
    """Levels of one example at every token, shape (n_tokens,), int8 in units of peak / LEVELS, as a short text.

    `levels.js` reads it. For each active token: the gap to the active token before it, then its activation in 61 steps
    of the peak, each as one of 62 digits. `+` skips 61 tokens more, and `-` stands before a negative activation.
    """
    return encode_all_levels(levels[None])[0]


def encode_all_levels(levels: torch.Tensor) -> list[str]:
    """The same of many examples, shape (n_examples, n_tokens): at once, since there may be a million of them."""
    # As numbers of Python they take forty times the memory, so not of all at once.
    return [text for some in levels.split(_ENCODED_AT_ONCE) for text in _encode_some_levels(some)]


def _encode_some_levels(levels: torch.Tensor) -> list[str]:
    texts, last_row, last = [""] * len(levels), -1, -1
    rows, tokens = levels.nonzero().T
    for row, token, level in zip(rows.tolist(), tokens.tolist(), levels[rows, tokens].tolist(), strict=True):
        if row != last_row:
            last_row, last = row, -1
        skips, gap = divmod(token - last - 1, FULL)
        step = max(1, round(abs(level) / LEVELS * FULL))
        texts[row] += "+" * skips + DIGITS[gap] + ("-" if level < 0 else "") + DIGITS[step]
        last = token
    return texts


def decode_levels(text: str, n_tokens: int) -> list[float]:
    """What `encode_levels` wrote, as shares of the peak: `n_tokens` numbers from -1 to 1."""
    levels, token, characters = [0.0] * n_tokens, -1, iter(text)
    for character in characters:
        if character == "+":
            token += FULL
            continue
        token += DIGITS.index(character) + 1
        step = next(characters)
        sign, step = (-1, next(characters)) if step == "-" else (1, step)
        levels[token] = sign * DIGITS.index(step) / FULL
    return levels


class Fit(NamedTuple):
    """What is shown of each concept."""

    n_examples: list[int]
    """Examples of each concept, of each kind."""
    samples: torch.Tensor
    """All samples among them, growing, int64."""


def fit_examples(
    kinds: Sequence[TopExamples], bytes_per_sample: int, n_bytes: int, always: torch.Tensor, *, searched: bool = False
) -> Fit:
    """The largest number of examples of each concept, at least one, whose pages and samples fit into `n_bytes`.

    Args:
        kinds: Examples of all concepts; of each kind the same share is shown.
        bytes_per_sample: What an image or a context takes.
        n_bytes: What there is.
        always: Samples that are shown in any case.
        searched: Whether the examples are written once more, by sample, for the search in texts.
    """
    per_example = _BYTES_PER_EXAMPLE + (_BYTES_PER_SEARCHED if searched else 0)
    per_token = _BYTES_PER_TOKEN * (2 if searched else 1)
    n_active_tokens = [(kind.levels != 0).sum(-1) for kind in kinds]
    most = kinds[0].sample.shape[1]
    for k in range(most, 0, -1):
        n_examples = [math.ceil(kind.sample.shape[1] * k / most) for kind in kinds]
        mine = [kind.sample[:, :n][kind.sample[:, :n] >= 0] for kind, n in zip(kinds, n_examples, strict=True)]
        samples = torch.cat([*mine, always]).unique()
        size = len(samples) * bytes_per_sample + len(kinds[0].sample) * _BYTES_PER_CONCEPT
        size += sum(map(len, mine)) * per_example
        size += sum(int(n[:, :m].sum()) for n, m in zip(n_active_tokens, n_examples, strict=True)) * per_token
        if size <= n_bytes or k == 1:
            return Fit(n_examples, samples)
    raise AssertionError("there is at least one example")
