import gzip
import json

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.distributed import split_dataset_by_node

from sae_lens_sparsemax.data.texts import load_text_dataset, part_of_dataset, part_of_document
from sae_lens_sparsemax.training.config_file import config_from_values
from tests.support.tiny_language_model import documents

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


WORDS = {"text": ["one", None, "three"]}
IDS = [[1, 2], [3, 4], [5, 6]]
CHAT = [[{"role": "user", "content": "hi"}]] * 3


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("columns", "use_chat_formatting", "read"),
    [
        ({**WORDS, "tokens": [3, 4, 5]}, False, "text"),
        ({**WORDS, "tokens": IDS}, False, "tokens"),
        ({**WORDS, "tokens": [3, 4, 5], "input_ids": IDS}, False, "input_ids"),
        ({**WORDS, "tokens": IDS}, True, "text"),
        ({**WORDS, "messages": CHAT}, False, "text"),
        ({**WORDS, "messages": CHAT}, True, "messages"),
        ({**WORDS, "problem": ["p", "q", "r"]}, False, "text"),
        ({"problem": WORDS["text"], "n": [1, 2, 3]}, False, "text"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, dict) else str(each),
)
def test_what_the_store_reads_is_loaded_and_text_is_checked_beside_what_it_does_not(
    tmp_path, columns, use_chat_formatting, read, kind, streaming
):
    path = tmp_path / f"data.{kind}"
    data = Dataset.from_dict(columns)
    data.to_json(path) if kind == "jsonl" else data.to_parquet(path)
    rows = list(load_text_dataset(str(path), streaming=streaming, use_chat_formatting=use_chat_formatting))
    assert [row[read] for row in rows] == (["one", "three"] if read == "text" else columns[read])
    assert use_chat_formatting or read == "tokens" or "tokens" not in rows[0]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("columns", "use_chat_formatting"),
    [
        ({"tokens": [3, 4, 5]}, False),
        ({"tokens": [["a"], ["b"], ["c"]]}, False),
        ({"messages": CHAT}, False),
        ({"problem": ["p", "q", "r"]}, True),
    ],
)
def test_columns_that_the_store_cannot_read_are_no_text(tmp_path, columns, use_chat_formatting, kind):
    path = tmp_path / f"data.{kind}"
    data = Dataset.from_dict(columns)
    data.to_json(path) if kind == "jsonl" else data.to_parquet(path)
    with pytest.raises(ValueError, match=f"text_column must be one of '{next(iter(columns))}' .* got 'text'"):
        load_text_dataset(str(path), use_chat_formatting=use_chat_formatting)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("start", "between", "end"), [("[\n", ",\n", "\n]"), ("[\n ", "\n,", "]"), ("\n\n[", ",\n", "]")]
)
def test_an_array_with_an_object_a_line_is_read_whole(tmp_path, start, between, end, streaming):
    path = tmp_path / "data.json"
    path.write_text(start + between.join(json.dumps({"text": text}) for text in TEXTS) + end)
    assert texts(load_text_dataset(str(path), streaming=streaming)) == TEXTS


def test_an_object_around_an_array_is_none_of_its_lines(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('{"data": [\n{"text": "a"},\n{"text": "b"}\n]}')
    with pytest.raises(ValueError, match="text_column must be one of 'data'"):
        load_text_dataset(str(path))


def test_the_embedded_text_has_a_name():
    row = next(iter(load_text_dataset("quickstart", split="validation")))
    assert len(row["text"]) > 100


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_without_text_are_left_out_counted_and_named(tmp_path, caplog, kind, streaming):
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        lines = [
            '{"text": "one two"}',
            "null",
            '{"text": 3}',
            '{"text": null}',
            '{"text": ["a"]}',
            "{broken",
            '{"x": 1}',
        ]
        path.write_text("\n".join([*lines, '{"text": " "}', "", '{"text": "five"}']) + "\n")
        named = ["row 1 holds no JSON object", "row 2 holds int", "row 3 holds NoneType", "row 4 holds list"]
        named += ["row 5 holds no JSON object", "row 6 holds NoneType"]
    else:
        Dataset.from_dict({"text": ["one two", None, " ", "five"]}).to_parquet(path)
        named = ["row 1 holds NoneType"]
    for _ in range(2):  # the second time, the library may remember the rows
        caplog.clear()
        assert texts(load_text_dataset(str(path), streaming=streaming)) == ["one two", "five"]
        assert [record.message.partition(": ")[2] for record in caplog.records] == [
            each + (", not text." if "JSON" in each else " values, not text.") for each in named
        ]


@pytest.mark.parametrize("streaming", [True, False])
def test_too_many_rows_without_text_are_an_error_and_empty_ones_are_none(tmp_path, streaming):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n' + '{"text": 1}\n' * 11)
    with pytest.raises(ValueError, match=r"11 of the first 12 rows .* The first: row 1 holds int values, not text"):
        texts(load_text_dataset(str(path), streaming=streaming))
    path.write_text('{"text": "b"}\n' + '{"text": ""}\n' * 30)
    assert texts(load_text_dataset(str(path), streaming=streaming)) == ["b"]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("absent.jsonl", None, {}, r"there is no file .*absent\.jsonl"),
        ("a*.jsonl", None, {}, "there is no file"),
        ("data.xml", "text\nhello\n", {}, r"its ending must be one of \.jsonl, .* got '\.xml'"),
        ("empty.jsonl", "", {}, "empty.jsonl"),
        ("data.jsonl", '{"txt": "a", "n": 1}\n', {}, r"text_column must be one of 'txt', 'n' in .* got 'text'"),
        (
            "data.jsonl",
            '{"txt": "a"}\n',
            {"text_column": "tex"},
            r"text_column must be one of 'txt' in .* got 'tex'; did you mean 'txt'",
        ),
        (
            "data.jsonl",
            '{"text": 3}\n',
            {},
            "text_column must be a column with text .* got 'text': row 0 holds int values",
        ),
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
    with pytest.raises(ValueError, match="there is no file or folder"):
        load_text_dataset(str(tmp_path / "absent"))
    DatasetDict({"train": Dataset.from_dict({"text": TEXTS})}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="split must be one of train, got 'test'"):
        load_text_dataset(str(tmp_path / "saved"), split="test")


def test_documents_that_are_held_out_are_never_trained_on(tmp_path, tiny_model_folder):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(30)))
    values = {
        "model_name": str(tiny_model_folder),
        "model_class_name": "TransformerBridge",
        "hook_name": "blocks.0.hook_resid_post",
        "dataset_path": str(path),
        "held_out_fraction": 0.25,
        "context_size": 16,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 8,
        "train_batch_size_tokens": 32,
        "training_tokens": 64,
        "output_path": None,
        "checkpoint_path": None,
        "verbose": False,
        "sae": {"d_sae": 32},
    }
    runner = config_from_values(values).make_runner()
    trained_on = {row["text"] for row in runner.activations_store.dataset}
    parts = {text: part_of_document(text, 0.25) for text in documents(30)}
    assert trained_on == {text for text, part in parts.items() if part == "train"}
    assert set(parts.values()) == {"train", "validation", "held_out"}
    assert runner.run().cfg.metadata.held_out_fraction == 0.25


def test_only_documents_can_be_held_out(tmp_path):
    data = Dataset.from_list([{"tokens": [1, 2, 3]}])
    with pytest.raises(ValueError, match="'pile' must hold text"):
        part_of_dataset(data, "train", 0.1, "pile")
    with pytest.raises(
        ValueError, match="held_out_fraction must be such that a document of 'pile' belongs to the part 'held_out', got"
    ):
        part_of_dataset(Dataset.from_list([{"text": "a"}]), "held_out", 1e-9, "pile")
    with pytest.raises(ValueError, match="held_out_fraction must be at least 0 and below 0.5"):
        config_from_values(
            {
                "model_name": "m",
                "hook_name": "h",
                "dataset_path": "d",
                "held_out_fraction": 0.5,
                "n_batches_in_buffer": 64,
                "sae": {"d_sae": 64},
            }
        )


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", b"caf\xe9", "codec can't decode byte 0xe9 .* written in UTF-8"),
        ("cut.txt.gz", gzip.compress(b"text " * 999)[:-20], "ended before the end-of-stream marker"),
        ("bad.json", b'[{"text": "a"}, {', "Expected object or value"),
        ("ragged.csv", b"text,n\na,1\nb,2,3\n", "Expected 2 fields in line 3, saw 3"),
        ("cut.parquet", b"PAR1", "[Pp]arquet"),
    ],
    ids=["latin", "cut gzip", "bad JSON", "ragged CSV", "cut parquet"],
)
def test_what_datasets_reports_is_one_sentence_with_the_cause(tmp_path, name, content, message, streaming):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^The data set '.*{name}' could not be loaded: .*{message}"):
        load_text_dataset(str(tmp_path / name), streaming=streaming)


def test_a_stream_that_breaks_later_is_explained_as_well(tmp_path):
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "0.parquet")
    Dataset.from_dict({"text": ["b"], "more": [1]}).to_parquet(tmp_path / "1.parquet")
    data = load_text_dataset(str(tmp_path / "*.parquet"))
    assert isinstance(data, IterableDataset)
    for each in (data, split_dataset_by_node(data, 1, 2), data.shuffle(seed=0)):
        with pytest.raises(ValueError, match=r"could not be loaded: Couldn't cast .* because column names don't match"):
            list(each)
    assert texts(split_dataset_by_node(data, 0, 2)) == ["a"]


@pytest.mark.parametrize("streaming", [True, False])
def test_csv_is_read_as_it_stands(tmp_path, streaming):
    (tmp_path / "a.csv").write_text('text,n\n7,1\nNA,2\n,3\n"b, c",4\n')
    (tmp_path / "a.tsv").write_text("n\ttext\n1\tb, c\n")
    data = load_text_dataset(str(tmp_path / "a.csv"), streaming=streaming)
    assert [row["text"] for row in data] == ["7", "NA", "b, c"]
    assert [row["text"] for row in load_text_dataset(str(tmp_path / "a.tsv"), streaming=streaming)] == ["b, c"]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("path", ["d/a.txt", "d"])
def test_a_line_of_spaces_separates_documents_too(tmp_path, path, streaming):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text(" \n = A =\n \none\ntwo\n\t\n\n\nthree\n\n")
    data = load_text_dataset(str(tmp_path / path), streaming=streaming)
    assert [row["text"] for row in data] == [" = A =", "one\ntwo", "three"]
