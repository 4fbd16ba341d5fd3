import gzip
import json

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from sae_lens_sparsemax.training.text_data import load_text_dataset

TEXTS = ["one two", "three four", "five"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def texts(data) -> list[str]:
    return [row["text"] for row in data]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "txt", "glob", "folder", "saved", "saved splits"])
def test_every_local_form_is_read(tmp_path, kind, streaming):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    folder = tmp_path / "data"
    folder.mkdir()
    path = folder / "data.jsonl"
    if kind == "jsonl.gz":
        path = folder / "data.jsonl.gz"
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "parquet":
        path = folder / "data.parquet"
        Dataset.from_dict({"text": TEXTS}).to_parquet(path)
    elif kind == "txt":
        path = folder / "data.txt"
        path.write_text("\n\n".join(TEXTS))
    elif kind == "saved":
        path = folder / "saved"
        Dataset.from_dict({"text": TEXTS}).save_to_disk(path)
    elif kind == "saved splits":
        path = folder / "saved"
        DatasetDict({"train": Dataset.from_dict({"text": TEXTS})}).save_to_disk(path)
    else:
        path.write_text(lines)
        path = {"glob": folder / "*.jsonl", "folder": folder}.get(kind, path)
    data = load_text_dataset(str(path), streaming=streaming)
    assert [text.strip() for text in texts(data)] == TEXTS
    assert isinstance(data, IterableDataset) == streaming


def test_the_named_column_is_used_even_beside_token_ids(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"content": "hello", "text": "wrong", "input_ids": [1, 2]}) + "\n")
    (row,) = load_text_dataset(str(path), text_column="content")
    assert row == {"text": "hello"}


def test_tokenized_data_need_no_text(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"input_ids": [1, 2]}) + "\n")
    (row,) = load_text_dataset(str(path))
    assert row["input_ids"] == [1, 2]


def test_the_embedded_text_has_a_name():
    row = next(iter(load_text_dataset("quickstart", split="validation")))
    assert len(row["text"]) > 100


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("absent.jsonl", None, {}, r"there is no file .*absent\.jsonl"),
        ("a*.jsonl", None, {}, "there is no file"),
        ("data.csv", "text\nhello\n", {}, r"its ending is none of \.jsonl"),
        ("empty.jsonl", "", {}, "empty.jsonl"),
        ("data.jsonl", '{"txt": "a", "n": 1}\n', {}, r"no column 'text'; its columns are 'txt', 'n'"),
        ("data.jsonl", '{"txt": "a"}\n', {"text_column": "tex"}, r"no column 'tex'; its columns are 'txt'"),
        ("data.jsonl", '{"text": 3}\n', {}, "'text' of the data set .* holds int values"),
        ("data.jsonl", '{"text": "a"}\n', {"split": "test"}, "test"),
        ("data.jsonl", "no json\n", {}, "could not be loaded"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, name, content, options, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load_text_dataset(str(path), **options)
    assert "\n" not in str(error.value)


def test_missing_folders_and_splits_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        load_text_dataset(str(tmp_path / "absent"))
    DatasetDict({"train": Dataset.from_dict({"text": TEXTS})}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="no split 'test', only 'train'"):
        load_text_dataset(str(tmp_path / "saved"), split="test")
