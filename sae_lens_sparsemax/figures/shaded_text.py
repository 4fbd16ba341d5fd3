"""Tokens as running text, each on a ground as deep as a concept's activation at it."""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle

from sae_lens_sparsemax.display.plots import BLUE, INK, ORANGE, as_vector, say
from sae_lens_sparsemax.settings.sentences import must_be

_FONT = "DejaVu Sans Mono"  # comes with matplotlib
_EM = 0.602  # width of its characters, in font sizes
_LINE = 1.75  # height of a line, in font sizes
_SIGNS = {"\n": "↵", "\r": "↵", "\t": "→"}


def line_height(font_size: float) -> float:
    """Inches that a line takes."""
    return font_size * _LINE / 72


def draw_shaded_text(
    axes: Axes,
    tokens: Sequence[str],
    feature_acts: Any,
    *,
    max_value: float,
    width: float,
    max_lines: int,
    font_size: float = 8.0,
) -> None:
    """Tokens with one concept's activations; the text is cut to lines around the largest activation.

    Args:
        axes: where to draw, placed by hand, `max_lines` and 0.6 lines of `line_height` high.
        tokens: `n` texts.
        feature_acts: `(n,)`; positive ones in orange, negative ones in blue with a line below.
        max_value: activation of the deepest ground.
        width: of the axes in inches.
        max_lines: lines that there is room for.
        font_size: in points.

    Raises:
        ValueError: not one activation for each token.
    """
    acts = as_vector(feature_acts, "feature_acts")
    if len(acts) != len(tokens):
        raise must_be("feature_acts", f"as many as the {len(tokens)} tokens", len(acts))
    axes.set_axis_off()
    if not len(tokens):
        say(axes, "There are no tokens.")
        return
    fitting = width * 72 / (_EM * font_size)
    columns = max(8, int(fitting))
    placed = _wrap([shown(token) for token in tokens], columns)
    peak_line = placed[int(np.abs(acts).argmax())][0]
    last = placed[-1][0]
    first = int(np.clip(peak_line - max_lines // 2, 0, max(0, last - max_lines + 1)))
    axes.set_xlim(0, max(8.0, fitting))
    axes.set_ylim(max_lines + 0.6, 0)
    for (line, column, text), act in zip(placed, acts, strict=True):
        if not first <= line < first + max_lines:
            continue
        y, n_columns = line - first, _columns(text)
        if act:
            strength = min(abs(act) / max_value, 1.0) if max_value > 0 else 1.0
            ground = _blend(ORANGE if act > 0 else BLUE, 0.15 + 0.75 * strength if act > 0 else 0.1 + 0.4 * strength)
            axes.add_patch(Rectangle((column, y + 0.08), n_columns, 0.84, facecolor=ground, edgecolor="none"))
            if act < 0:
                axes.plot([column, column + n_columns], [y + 0.9, y + 0.9], color=BLUE, lw=1)
        axes.text(
            column, y + 0.5, text, family=_FONT, fontsize=font_size, color=INK, va="center_baseline", parse_math=False
        )


def shown(token: str) -> str:
    """A token as it can be drawn: signs for line breaks and tabs, boxes for what the font has not."""
    characters = (_SIGNS.get(character, character) for character in token)
    return "".join(c if _has_glyph(c) else "□" for c in characters) or "∅"


def _wrap(texts: list[str], columns: int) -> list[tuple[int, int, str]]:
    """Line and column of each text; one longer than a line is cut."""
    placed, line, column = [], 0, 0
    for text in texts:
        if _columns(text) > columns:
            text = text[: columns // 2 - 1] + "…"
        n = _columns(text)
        if column + n > columns:
            line, column = line + 1, 0
        placed.append((line, column, text))
        column += n
    return placed


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _blend(color: str, share: float) -> tuple[float, float, float]:
    """A colour mixed with white."""
    red, green, blue = (1 - share + share * part for part in to_rgb(color))
    return red, green, blue


@functools.cache
def _font() -> FT2Font:
    return font_manager.get_font(font_manager.findfont(_FONT))


def _has_glyph(character: str) -> bool:
    return bool(_font().get_char_index(ord(character))) and not unicodedata.category(character).startswith("C")
