"""How numbers are written, and that no cell can break a table."""

import csv
import io
import math

import pytest

from sae_lens_sparsemax.display.tables import csv_table, markdown_table, mean_and_std, number, percent, text_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (0.98765, "0.9877"),
        (-2.5, "-2.5000"),
        (31.7312, "31.73"),
        (2e-5, "2e-05"),
        (12345.6, "12,346"),
        (3e9, "3e+09"),
        (4096, "4,096"),
        (math.inf, "inf"),
        (math.nan, "n/a"),
        (None, "n/a"),
    ],
)
def test_a_number_is_written_in_about_four_digits(value, text):
    assert number(value) == text


def test_digits_percent_and_spread():
    assert (number(1234.56, 1), percent(0.1234), percent(0.5, 0), percent(None)) == ("1,234.6", "12.3 %", "50 %", "n/a")
    assert mean_and_std(0.55, 0.0707, 4) == "0.5500 ± 0.0707"
    assert mean_and_std(0.55, math.nan, 2) == "0.55", "a single seed has no spread"
    assert mean_and_std(math.nan, math.nan, 2) == "n/a"


def test_no_cell_breaks_a_markdown_table():
    table = markdown_table(["name", "a | b"], [["x | y\nz", 1], [None, 0.5], ["", True]], missing="not recorded")
    assert table.split("\n") == [
        "| name | a \\| b |",
        "| --- | --- |",
        "| x \\| y z | 1 |",
        "| not recorded | 0.5000 |",
        "|  | yes |",
    ]


def test_columns_in_the_terminal_line_up():
    assert text_table([("L0, mean", 31.7312), ("EV", 0.9)]).split("\n") == [
        "----------------",
        "L0, mean  31.73",
        "EV        0.9000",
        "----------------",
    ]


def test_csv_has_a_column_for_every_key_and_numbers_in_full():
    text = csv_table([{"arm": "a, b", "ev": 1 / 3}, {"arm": "c", "l0": None}])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows == [{"arm": "a, b", "ev": str(1 / 3), "l0": ""}, {"arm": "c", "ev": "", "l0": ""}]
