from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from sae_lens_sparsemax import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.settings.checking import Word, build, plain


@dataclass
class Source:
    path: str
    rows: int = 3


@dataclass
class Settings:
    steps: int = 1
    lr: float = 1.0
    streaming: bool = False
    name: str = "x"
    config: str | None = None
    mode: Literal["all", "cls"] = "all"
    class_names: list[str] | None = None
    seqpos_slice: tuple[int | None, ...] = (None,)
    token: int | Literal["bos", "eos"] | None = "bos"
    sparsities: list[int | float] = field(default_factory=list)
    datasets: dict[str, Source] = field(default_factory=dict)
    arms: list[Source] = field(default_factory=list)
    counting: Source | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    range: tuple[int, float | None] = (0, None)
    changes: list[tuple[int, float, str]] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("steps", "1_000", 1000),
        ("steps", 20.0, 20),
        ("lr", "1e-3", 1e-3),
        ("lr", 2, 2.0),
        ("class_names", ["0", "7"], ["0", "7"]),
        ("seqpos_slice", [1, None], (1, None)),
        ("sparsities", [8, 0.5], [8, 0.5]),
        ("datasets", {"a": {"path": "x"}}, {"a": Source("x")}),
        ("datasets", {"a": Source("x")}, {"a": Source("x")}),
        ("arms", [{"path": "x", "rows": 2}], [Source("x", 2)]),
        ("counting", None, None),
        ("kwargs", {"torch_dtype": "float16"}, {"torch_dtype": "float16"}),
    ],
)
def test_values_of_files_become_what_the_field_says(name, given, read):
    value = getattr(build(Settings, {name: given}), name)
    assert value == read and type(value) is type(read)
    if name == "sparsities":  # finished runs are found by them: 8 must not become 8.0
        assert [type(each) for each in value] == [int, float]


@pytest.mark.parametrize(
    ("name", "word", "read"),
    [
        ("name", "runs/exp #3", "runs/exp #3"),
        ("name", "2024-05-01", "2024-05-01"),
        ("name", "no", "no"),
        ("name", "1e3", "1e3"),
        ("name", "@scratch/x", "@scratch/x"),
        ("name", "null", "null"),
        ("name", "[a", "[a"),
        ("config", "null", None),
        ("config", "3", "3"),
        ("mode", "cls", "cls"),
        ("class_names", "[0, no]", ["0", "no"]),
        ("class_names", "cat", ["cat"]),
        ("steps", "2_000", 2000),
        ("streaming", "true", True),
        ("token", "eos", "eos"),
        ("token", "7", 7),
        ("token", "null", None),
        ("seqpos_slice", "[1, null]", (1, None)),
    ],
)
def test_words_of_the_command_line_are_read_as_the_field_asks(name, word, read):
    value = getattr(build(Settings, {name: Word(word)}), name)
    assert value == read and type(value) is type(read)


def test_words_in_groups_are_read_as_their_own_fields_ask():
    given = {"datasets": {"wiki": {"path": Word("d #2/a"), "rows": Word("1_0")}}, "kwargs": {"a": Word("1e3")}}
    settings = build(Settings, given)
    assert settings.datasets == {"wiki": Source("d #2/a", 10)} and settings.kwargs == {"a": 1000.0}
    assert plain(Settings, given) == {"datasets": {"wiki": {"path": "d #2/a", "rows": 10}}, "kwargs": {"a": 1000.0}}


@pytest.mark.parametrize("given", [float("inf"), Word("inf"), Word(".inf")])
def test_the_gate_alone_may_be_infinite(given):
    values = {"d_in": 8, "d_sae": 16, "alpha": given}
    assert build(SparsemaxTrainingSAEConfig, values).alpha == float("inf")
    with pytest.raises(ValueError, match="gate_scale must be a number, got"):
        build(SparsemaxTrainingSAEConfig, values | {"gate_scale": given})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": "many"}, "steps must be a whole number, got 'many'"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"steps": None}, "steps must be a whole number, got None"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 2**63}, f"steps must be below 2**63, got {2**63}"),
        ({"seqpos_slice": [0, -(2**70)]}, f"seqpos_slice must be above -2**63, got {-(2**70)}"),
        ({"seqpos_slice": ["a"]}, "seqpos_slice must be a list of whole numbers or null, got ['a']"),
        ({"range": [1]}, "range must be a list of a whole number and a number or null, got [1]"),
        (
            {"changes": [[1, 2.0]]},
            "changes must be a list of lists of a whole number, a number and text (in quotes where needed), "
            "got [[1, 2.0]]",
        ),
        ({"groups": [1]}, "groups must be a list of lists of whole numbers, got [1]"),
        ({"lr": False}, "lr must be a number, got False"),
        ({"lr": float("inf")}, "lr must be a number, got inf"),
        ({"lr": 0}, "lr must be above 0, got 0"),
        ({"streaming": 1}, "streaming must be true or false, got 1"),
        ({"streaming": Word("yes")}, "streaming must be true or false, got 'yes'"),
        ({"name": 3}, "name must be text (in quotes where needed), got 3"),
        ({"mode": "cl"}, "mode must be one of all, cls, got 'cl'; did you mean 'cls'?"),
        ({"class_names": [0]}, "class_names must be a list of texts (in quotes where needed) or null, got [0]"),
        ({"sparsities": ["x"]}, "sparsities must be a list of numbers, got ['x']"),
        ({"datasets": {"wiki": 3}}, "datasets.wiki must be a group of keys, got 3"),
        (
            {"datasets": {"w": {"paht": "x"}}},
            "datasets.w.paht is not a valid key; did you mean datasets.w.path?",
        ),
        ({"arms": [{"path": "a"}, {"path": "b", "rows": "c"}]}, "arms.1.rows must be a whole number, got 'c'"),
        ({"counting": {"rows": 1}}, "counting.path must be given"),
        ({"counting": "x"}, "counting must be a group of keys, got 'x'"),
        ({"stps": 1}, "stps is not a valid key; did you mean steps?"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_place_and_what_was_given(values, sentence):
    with pytest.raises(ValueError) as error:
        build(Settings, values)
    assert str(error.value) == sentence


def test_long_values_are_shortened():
    with pytest.raises(ValueError) as error:
        build(Settings, {"steps": "9x" * 10_000})
    assert len(str(error.value)) < 200


@dataclass
class TextSuite:
    model_name: str | None = None
    datasets: dict[str, Source] = field(default_factory=dict)


@dataclass
class VisionSuite:
    dataset_path: str | None = None
    image_column: str = "image"
    counting_dataset: Source | None = None


@pytest.mark.parametrize(
    ("cls", "values", "sentence"),
    [
        (TextSuite, {"model": "gpt2"}, "model is now called model_name"),
        (TextSuite, {"data": {"wiki": {"path": "x"}}}, "data is now called datasets"),
        (VisionSuite, {"dataset": "x"}, "dataset is now called dataset_path"),
        (VisionSuite, {"data": {"path": "x"}}, "data.path is now called dataset_path"),
        (VisionSuite, {"data": {"image_column": "img"}}, "data.image_column is now called image_column"),
        (VisionSuite, {"counting_data": {"path": "x"}}, "counting_data is now called counting_dataset"),
    ],
)
def test_an_old_name_is_answered_with_the_new_one(cls, values, sentence):
    with pytest.raises(ValueError) as error:
        build(cls, values)
    assert str(error.value) == sentence
