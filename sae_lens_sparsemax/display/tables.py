"""Tables, the same for all who write one: Markdown for reports, CSV for programs, plain text for the terminal.

Cells are values, not text: numbers are written here, once. Text is taken as it is, for what has its own form.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MISSING = "n/a"
"""What stands for a value that is None or not a number."""


def number(value: float | None, digits: int | None = None) -> str:
    """A number as tables show it.

    Args:
        value: None and NaN are called `MISSING`.
        digits: decimals; None for four significant digits or so, and for whole numbers of type int as they are.
    """
    if value is None or math.isnan(value):
        return MISSING
    if digits is not None:
        return f"{value:,.{digits}f}"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or 1e-3 <= abs(value) < 10:
        return f"{value:.4f}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in per cent."""
    return MISSING if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def mean_and_std(mean: float | None, std: float, digits: int) -> str:
    """A mean ± standard deviation; without one where there is none, as of a single value."""
    return number(mean, digits) + ("" if math.isnan(std) else f" ± {number(std, digits)}")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], missing: str = MISSING) -> str:
    """A table in Markdown, without a line break at its end.

    Args:
        header: names of the columns.
        rows: one value for each column; line breaks and bars in text cannot break the table.
        missing: what to write for None.
    """
    lines = [[_escaped(name) for name in header], ["---"] * len(header)]
    lines += [[_escaped(missing if value is None else _text(value)) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text_table(rows: Iterable[Sequence[Any]]) -> str:
    """Columns of equal width between two lines, for the terminal."""
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    rule = "-" * max(map(len, lines), default=0)
    return "\n".join([rule, *lines, rule])


def csv_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table in CSV: a column for every key that a row has, numbers in full, nothing where a row lacks the key."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if value is None or isinstance(value, int | float) else str(value)


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
