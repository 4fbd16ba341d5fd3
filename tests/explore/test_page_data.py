"""What the pages read: activations as short text, numbers, and texts that must never become markup."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_sparsemax.explore.pages.scripts import (
    FULL,
    decode_levels,
    encode_levels,
    fit_examples,
    read_script,
    rounded,
    write_script,
)
from sae_lens_sparsemax.explore.pages.site import density_histogram, l0_histogram
from sae_lens_sparsemax.explore.samples import LEVELS, TopExamples

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>\u2028\u2029",
    '");alert(1);("',
    "\\",
    "\x00\x7f\ud800 lone",
    "naïve 日本 🙂",
]


@given(st.lists(st.one_of(st.just(0), st.integers(-LEVELS, LEVELS)), min_size=1, max_size=400))
def test_levels_are_read_back_to_a_step(levels):
    restored = decode_levels(encode_levels(torch.tensor(levels, dtype=torch.int8)), len(levels))
    for exact, found in zip(levels, restored, strict=True):
        assert abs(exact / LEVELS - found) <= max(0.5 / FULL, (1 / FULL - 1 / LEVELS) if exact else 0) + 1e-9
        assert (exact == 0) == (found == 0)


def test_long_gaps_between_active_tokens_are_kept():
    levels = torch.zeros(500, dtype=torch.int8)
    levels[[0, 60, 121, 183, 499]] = LEVELS
    assert [i for i, x in enumerate(decode_levels(encode_levels(levels), 500)) if x] == [0, 60, 121, 183, 499]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_from_data_sets_cannot_leave_their_script(tmp_path, text):
    write_script(tmp_path, "table", {"label": [text], text: 1})
    script = (tmp_path / "data" / "table.js").read_bytes()
    assert not any(character in script for character in b"<>&") and script.isascii() and script.count(b"\n") == 1
    start, end = b'explorer.receive("table",', b");\n"
    assert script.startswith(start) and script.endswith(end)
    assert json.loads(script[len(start) : -len(end)]) == {"label": [text], text: 1} == read_script(tmp_path, "table")


def test_numbers_keep_four_digits_and_what_is_not_finite_is_null():
    assert [rounded(x) for x in (1234567.0, 0.000123456, 2.0, 0.0, -1.23456)] == [1235000, 0.0001235, 2, 0, -1.235]
    assert rounded(math.nan) is None and rounded(-math.inf) is None


def test_l0_is_counted_value_by_value_or_in_wider_bars():
    narrow = l0_histogram(torch.tensor([0, 0, 5, 1, 0, 2]))
    assert narrow == {"low": 2, "width": 1, "counts": [5, 1, 0, 2]}
    wide = l0_histogram(torch.ones(200, dtype=torch.int64))
    outlier = l0_histogram(torch.cat([torch.zeros(9), torch.full((2,), 500), torch.zeros(989), torch.ones(1)]).long())
    assert outlier == {"low": 9, "width": 1, "counts": [500, 500], "beyond": 1, "highest": 1000}
    assert wide["width"] == 4 and sum(wide["counts"]) == 200 and len(wide["counts"]) == 50


def test_density_puts_each_active_concept_into_a_fifth_of_a_decade():
    found = density_histogram(torch.tensor([0.0, 1.0, 0.5, 0.11, 0.0011], dtype=torch.float64))
    counts = {round(found["low"] + i * found["width"], 6): n for i, n in enumerate(found["counts"]) if n}
    assert counts == {-0.2: 1, -0.4: 1, -1.0: 1, -3.0: 1}
    assert density_histogram(torch.zeros(3))["counts"] == []


def test_fewer_examples_are_shown_where_the_folder_would_grow_too_large():
    top = TopExamples(10, 5, 4)
    top.sample = torch.arange(50).view(10, 5)
    top.levels[:] = 1
    everything = fit_examples([top], 1000, 10**9, torch.tensor([99]))
    assert everything.n_examples == [5] and everything.samples.tolist() == [*range(50), 99]
    some = fit_examples([top], 1000, 45_000, torch.tensor([99]))
    (n_examples,) = some.n_examples
    assert 1 < n_examples < 5
    assert some.samples.tolist() == sorted([*top.sample[:, :n_examples].flatten().tolist(), 99])
    assert fit_examples([top], 1000, 1, torch.tensor([99])).n_examples == [1]
