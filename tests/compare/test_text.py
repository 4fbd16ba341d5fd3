import pytest

from sae_lens_sparsemax.compare.config import EvalDataset
from sae_lens_sparsemax.compare.text_source import load_text
from sae_lens_sparsemax.data.texts import PARTS, part_of_document
from tests.support.tiny_language_model import documents


def test_documents_fall_into_parts_of_the_asked_size_by_their_text_alone():
    texts = documents(3000, words_each=6)
    parts = [part_of_document(text, 0.2) for text in texts]
    for part, share in zip(PARTS, (0.6, 0.2, 0.2), strict=True):
        assert parts.count(part) / len(texts) == pytest.approx(share, abs=0.03)
    assert [part_of_document(f" {text}\n", 0.2) for text in texts] == parts


def test_every_kind_of_file_gives_its_documents_without_empty_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\n \n\n")
    (tmp_path / "a.jsonl").write_text('{"body": "one", "id": 1}\n{"body": "", "id": 2}\n{"body": "two", "id": 3}\n')
    texts = load_text(EvalDataset(path=str(tmp_path / "a.txt")))["text"]
    assert [text.strip() for text in texts] == ["one", "two"]
    assert load_text(EvalDataset(path=str(tmp_path / "a.jsonl"), text_column="body"))["text"][:] == ["one", "two"]


def test_missing_paths_files_and_columns_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n')
    with pytest.raises(ValueError, match="there is no file 'nowhere.txt'"):
        load_text(EvalDataset(path="nowhere.txt"))
    with pytest.raises(ValueError, match="text_column must be one of 'body' .* got 'text'"):
        load_text(EvalDataset(path=str(tmp_path / "a.jsonl")))
