import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from sae_lens_sparsemax.files import digest_of, load_json, save_json


@dataclass
class Result:
    name: str
    value: float


@dataclass
class Nested:
    inner: Result
    values: list[float]


def test_a_result_comes_back_equal(tmp_path):
    result = Result("a", 0.1 + 0.2)
    assert load_json(Result, save_json(result, tmp_path / "deep" / "result.json")) == result


def test_what_is_not_finite_is_null_in_the_file_and_nan_again_after(tmp_path):
    path = save_json(Result("a", math.nan), tmp_path / "result.json")
    assert json.loads(path.read_text()) == {"name": "a", "value": None}
    assert math.isnan(load_json(Result, path).value)
    path = save_json(Nested(Result("b", math.inf), [1.0, math.nan]), path)
    assert json.loads(path.read_text()) == {"inner": {"name": "b", "value": None}, "values": [1.0, None]}


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = save_json({"name": "a", "other": 1}, tmp_path / "result.json")
    with pytest.raises(ValueError, match="does not hold a Result"):
        load_json(Result, path)


def test_the_digest_that_names_results_is_always_the_same():
    values = {"b": 1, "a": [1.5, None, "ü", True], "path": Path("x/y")}
    assert digest_of(values).hexdigest() == "7a7db767e262f391e01943ff2ccfdad31d2ca7b569e9dbb53c5750275107a5de"
    assert digest_of(dict(reversed(values.items()))).hexdigest() == digest_of(values).hexdigest()
