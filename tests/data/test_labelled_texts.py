import json
import logging

import pytest
from datasets import ClassLabel, Dataset

from sae_lens_sparsemax.data.labelled_texts import LabelledText, load_labelled_texts

TEXTS = ["one", "NA", "three", "four", "five"]
LABELS = ["good", "bad", None, "good", "bad"]


def save(folder, ending, texts=TEXTS, labels=LABELS, text="text", label="label") -> LabelledText:
    path = folder / f"set.{ending}"
    rows = [{text: t, label: c, "tokens": [1]} for t, c in zip(texts, labels, strict=True)]
    if ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        lines = [f"{text},{label},tokens", *(f"{r[text]},{'' if r[label] is None else r[label]},1" for r in rows)]
        path.write_text("\n".join(lines) + "\n")
    return LabelledText(str(path), text_column=text, label_column=label)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("columns", [("text", "label"), ("prompt", "target")])
def test_texts_and_their_classes(tmp_path, caplog, ending, columns):
    data = save(tmp_path, ending, text=columns[0], label=columns[1])
    with caplog.at_level(logging.WARNING):
        assert load_labelled_texts(data, 10) == (["one", "NA", "four", "five"], ["good", "bad", "good", "bad"])
    assert f"1 of 5 texts of {data.path!r} have no class in {columns[1]!r}" in caplog.text
    assert load_labelled_texts(data, 2)[0] == ["one", "NA"]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_numbers_are_classes_as_they_are_written(tmp_path, ending):
    data = save(tmp_path, ending, labels=[1, -1, None, 1, 0])
    assert load_labelled_texts(data, 10)[1] == ["1", "-1", "1", "0"]


def test_named_classes_have_their_names_and_minus_one_is_none(tmp_path):
    rows = Dataset.from_dict({"text": TEXTS, "label": [1, 0, -1, 1, 0]})
    rows.cast_column("label", ClassLabel(names=["bad", "good"])).to_parquet(tmp_path / "set.parquet")
    assert load_labelled_texts(LabelledText(str(tmp_path / "set.parquet")), 10)[1] == ["good", "bad", "good", "bad"]


def test_rows_without_text_are_left_out_with_their_class(tmp_path, caplog):
    data = save(tmp_path, "jsonl", texts=["one", None, "", "four", "five"], labels=["a", "b", "b", "c", "a"])
    assert load_labelled_texts(data, 10) == (["one", "four", "five"], ["a", "c", "a"])
    assert "row 1 holds NoneType values, not text" in caplog.text


@pytest.mark.parametrize(
    ("labels", "column", "message"),
    [
        (["a"] * 5, "label", "2 to 50 classes among the first 5 texts of {path!r}, got 1 in 'label', the first ['a']"),
        ([None] * 5, "label", "2 to 50 classes among the first 0 texts of {path!r}, got 0 in 'label', the first []"),
        (
            LABELS,
            "lable",
            "must be one of 'text', 'label', 'tokens' in the data set {path!r}, got 'lable'; did you mean",
        ),
        ([[1]] * 5, "label", "label_column must be a column of words or whole numbers in {path!r}, got [1]"),
        (LABELS, "text", "label_column must be another column than text_column, got 'text'"),
    ],
)
def test_what_holds_no_classes_is_refused_in_one_sentence(tmp_path, labels, column, message):
    path = save(tmp_path, "jsonl", labels=labels).path
    with pytest.raises(ValueError) as error:
        load_labelled_texts(LabelledText(path, label_column=column), 10)
    assert message.format(path=path) in str(error.value)


def test_a_column_of_many_values_holds_no_classes(tmp_path):
    data = save(tmp_path, "jsonl", texts=["x"] * 60, labels=[i / 7 for i in range(60)])
    with pytest.raises(ValueError, match="2 to 50 classes among the first 60 texts of .* got 60 "):
        load_labelled_texts(data, 100)
