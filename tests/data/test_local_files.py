"""Which files of a folder are its data, and that an ending, a mark or a folder changes nothing of how they are read."""

import gzip
import json

import pandas
import pytest
from datasets import Dataset, DatasetDict

from sae_lens_sparsemax.data.images import load_image_dataset
from sae_lens_sparsemax.data.loading import split_names
from sae_lens_sparsemax.data.texts import load_text_dataset
from tests.support.tiny_images import gray_levels

TEXTS = ["one\ntwo", "NA", "three"]
TXT = "\n\n".join(TEXTS).encode()
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
BROKEN = b'{"text": 3}\n{broken\n'
ARRAY = json.dumps([{"text": text} for text in TEXTS]).encode()
CSV = b'text,n\n"one\ntwo",1\nNA,2\nthree,3\n'
MARK = b"\xef\xbb\xbf"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def folder_of(tmp_path, files: dict[str, bytes]):
    for name, content in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "data"


def texts(path, **options) -> list[str]:
    return [row["text"] for row in load_text_dataset(str(path), **options)]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("name", ["a[1].jsonl", "a?.jsonl", "x[1]/a.jsonl", "x[1]/a*.jsonl"])
def test_a_name_that_is_there_stands_for_itself_alone(tmp_path, name, streaming):
    folder = folder_of(tmp_path, {"ab.jsonl": BROKEN, "a1.jsonl": BROKEN, "x1/a.jsonl": BROKEN, name: LINES})
    assert texts(folder / name, streaming=streaming) == TEXTS
    if name.startswith("x"):
        assert texts(folder / "x[1]", streaming=streaming) == TEXTS


def test_a_folder_of_pictures_with_wildcards_in_its_name_is_refused_by_it(tmp_path):
    (tmp_path / "x[1]").mkdir()
    (tmp_path / "x[1]" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"its path must be one without \*, \? and \[, for a folder of such files"):
        load_image_dataset(str(tmp_path / "x[1]"))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("load", [load_text_dataset, load_image_dataset])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", b"text,image\nHello, world,a.png\n"), ("a.tsv", b"text\timage\none\ta.png\t\ntwo\ta.png\t\n")],
)
def test_tables_with_more_values_than_names_are_refused(tmp_path, load, name, content, streaming):
    path = folder_of(tmp_path, {name: content}) / name
    with pytest.raises(ValueError, match="the first line must name every column, got more values below it than names"):
        load(str(path), streaming=streaming)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_column_may_be_called_what_pandas_calls_an_index(tmp_path, streaming):
    path = folder_of(tmp_path, {"a.csv": b"text,__index_level_0__\none,5\ntwo,7\n"}) / "a.csv"
    assert texts(path, streaming=streaming) == ["one", "two"]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    "files",
    [
        {"a.txt": TXT, "README.md": b"About."},
        {"a.txt": TXT, "LICENSE": b"MIT", "NOTES.md": b"Notes.", "MORE.md": b"More."},
        {"A.TXT": TXT, "README.md": b"About."},
        {"A.TXT": b"one\ntwo\n\nNA", "b.txt": b"three"},
        {"x/a.txt": b"one\ntwo\n\nNA", "y/z/b.txt": b"three"},
        {"a.txt": TXT, ".git/config": b"[core]", ".DS_Store": b"\0"},
        {"a.txt.gz": gzip.compress(TXT), "LICENSE": b"MIT"},
        {"train.txt": TXT, "test.txt": b"other", "LICENSE": b"MIT"},
        {"a.jsonl": LINES + BROKEN, "LICENSE": b"MIT"},
        {"A.JSONL": LINES[:21], "b.jsonl": LINES[21:]},
        {"a.json": ARRAY, "notes.txt": b"Notes."},
        {"a.jsonl": LINES, "README.txt": b"About.", "LICENSE-MIT.txt": b"MIT", "licence.en.txt": b"MIT"},
        {"a.txt": TXT, "Readme.txt": b"About."},
        {"A.CSV": CSV, "README.md": b"About."},
    ],
    ids=lambda files: " ".join(files),
)
def test_the_data_of_a_folder_are_read_as_their_files_are(tmp_path, files, streaming):
    assert texts(folder_of(tmp_path, files), streaming=streaming) == TEXTS


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.TXT", TXT),
        ("a.txt.GZ", gzip.compress(TXT)),
        ("A.JSONL", LINES + BROKEN),
        ("A.JSON", LINES + BROKEN),
        ("A.JSON", ARRAY),
        ("A.CSV", CSV),
    ],
    ids=["txt", "gz", "jsonl", "json lines", "json array", "csv"],
)
def test_an_ending_in_capitals_is_the_same_ending(tmp_path, name, content, streaming):
    folder = folder_of(tmp_path, {name: content})
    assert texts(folder / name, streaming=streaming) == texts(folder, streaming=streaming) == TEXTS


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", TXT), ("a.jsonl", LINES), ("a.json", LINES), ("a.json", ARRAY), ("a.csv", CSV)],
    ids=["txt", "jsonl", "json lines", "json array", "csv"],
)
def test_a_byte_order_mark_costs_no_text_and_is_none(tmp_path, name, content, streaming):
    folder = folder_of(tmp_path, {name: MARK + content})
    assert texts(folder / name, streaming=streaming) == texts(folder, streaming=streaming) == TEXTS


def test_a_readme_that_says_which_files_are_what_is_followed(tmp_path):
    readme = b"---\nconfigs:\n- config_name: one\n  data_files: a.txt\n- config_name: whole\n  data_files: b.txt\n"
    readme += b"  sample_by: document\n---\n"
    folder = folder_of(tmp_path, {"a.txt": TXT, "b.txt": b"x\n\ny", "README.md": readme})
    assert texts(folder, config="one") == TEXTS
    assert texts(folder, config="whole") == ["x\n\ny"]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_folder_of_tables_in_capitals_has_images_and_splits(tmp_path, streaming):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        gray_levels(3).to_parquet(tmp_path / "data" / f"{split}.PARQUET")
    folder = folder_of(tmp_path, {"LICENSE": b"MIT"})
    assert repr(split_names(str(folder), None)) == "['train', 'test']"
    assert len(list(load_image_dataset(str(folder), split="test", streaming=streaming))) == 3


def test_pictures_are_no_table_beside_them(tmp_path):
    folder = folder_of(tmp_path, {"metadata.csv": b"file_name,text\n0.png,zero\n1.png,one\n", "LICENSE": b"MIT"})
    for i, row in enumerate(gray_levels(2)):
        row["image"].save(folder / f"{i}.png")  # type: ignore[index]
    assert load_image_dataset(str(folder)).column_names == ["image", "text"]


def test_parquet_in_capitals(tmp_path):
    Dataset.from_dict({"text": TEXTS}).to_parquet(tmp_path / "A.PARQUET")
    assert texts(tmp_path / "A.PARQUET") == TEXTS


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("splits", [False, True])
def test_slices_and_splits_of_what_was_saved_are_those_asked_for(tmp_path, splits, streaming):
    rows = Dataset.from_dict({"text": [f"text {i}" for i in range(10)]})
    (DatasetDict({"train": rows}) if splits else rows).save_to_disk(tmp_path / "saved")

    def texts(split: str) -> list[str]:
        data = load_text_dataset(str(tmp_path / "saved"), split=split, streaming=streaming)
        return [row["text"] for row in data]

    assert texts("train") == rows["text"][:]
    assert texts("train[:30%]") == rows["text"][:3]
    assert texts("train[30%:]") == rows["text"][3:]
    assert texts("train[:1]+train[9:]") == ["text 0", "text 9"]
    for wrong in ("validation", "test[:2]", "train[:2]+test"):
        with pytest.raises(ValueError, match="split must be one of train, got '(validation|test)'"):
            texts(wrong)


def test_what_was_saved_of_one_split_is_known_by_its_name_too(tmp_path):
    rows = Dataset.from_dict({"text": TEXTS}, split="test")
    rows.save_to_disk(tmp_path / "saved")
    for split in ("test", "train"):
        assert len(list(load_text_dataset(str(tmp_path / "saved"), split=split))) == len(TEXTS)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv", "a.tsv", "a.parquet"])
def test_files_without_rows_say_so(tmp_path, name, streaming):
    (tmp_path / name).write_text("text\n" if name.endswith("sv") else "")
    if name == "a.parquet":
        pandas.DataFrame({"text": pandas.Series([], dtype=str)}).to_parquet(tmp_path / name)
    with pytest.raises(ValueError, match="must have rows, got none"):
        load_text_dataset(str(tmp_path / name), streaming=streaming)
