"""The scripts behind the embedded assets: nothing lost, nothing in two splits, a model that learns."""

import io
import json
import logging
import re
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.assets import build_text, train_model


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abc .!?\n", min_size=1, max_size=900), max_size=12).map("".join))
def test_passages_keep_every_word_in_order(text):
    parts = list(build_text.passages(text))
    assert " ".join(parts).split() == text.split()


def test_passages_end_at_sentences_and_stay_near_their_length():
    sentence = "The whale is white. "
    parts = list(build_text.passages(sentence * 400))
    assert all(part.endswith(".") for part in parts)
    assert max(map(len, parts)) <= build_text.PASSAGE_CHARS + 10
    assert min(map(len, parts[:-1])) > build_text.PASSAGE_CHARS - len(sentence)


def test_dealing_is_disjoint_complete_and_within_budget():
    documents = {f"doc{i}": "x" * (100 + 37 * i) for i in range(40)}
    first, second, rest = build_text.deal(documents, [1_000, 5_000])
    assert sorted(first + second + rest) == sorted(documents)
    for names, budget in ((first, 1_000), (second, 5_000)):
        assert 0.5 * budget < sum(len(documents[name]) for name in names) <= budget
    assert build_text.deal(dict(reversed(documents.items())), [1_000, 5_000]) == [first, second, rest]


def test_documents_are_read_without_the_merged_copy_and_in_plain_punctuation(tmp_path):
    files = {
        "data/one.txt": "“Aye, aye” — it\u2019s",
        "data/data.txt": "all",
        "data/one.json": "{}",
        "README.txt": "-",
    }
    assert build_text.read_documents(archive(tmp_path / "a.tgz", files), "src") == {"src/one": '"Aye, aye" — it\'s'}


def test_an_archive_without_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tgz holds no package/data/\*\.txt"):
        build_text.read_documents(archive(tmp_path / "a.tgz", {"README.md": "x"}), "src")


def test_contexts_begin_with_bos_and_separate_passages_with_it():
    contexts = train_model.pack([[1, 2, 3], [4, 5], [6]], bos=0, context=4, order=[2, 0, 1])
    assert contexts.tolist() == [[0, 6, 0, 1], [0, 2, 3, 0], [0, 4, 5, 0]]


def test_scripts_make_a_model_that_learns(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(build_text, "HELD_OUT_CHARS", {"sotu": 600, "moby-dick": 600})
    monkeypatch.setattr(build_text, "SAE_CHARS", {"sotu": 2_000, "moby-dick": 2_000})
    text = "The ship sails on, and the whale swims before it. " * 10
    for name in ("sotu", "moby-dick"):
        archive(tmp_path / f"{name}.tgz", {f"data/{i}.txt": f"Chapter {i}. {text}" for i in range(20)})
    build_text.main(
        f"--sotu {tmp_path}/sotu.tgz --moby_dick {tmp_path}/moby-dick.tgz "
        f"--slices {tmp_path} --corpus {tmp_path}/corpus.jsonl".split()
    )
    sources = {
        file: {json.loads(line)["source"] for line in (tmp_path / file).read_text("utf-8").splitlines()}
        for file in ("corpus.jsonl", "train.jsonl", "validation.jsonl")
    }
    assert sources["train.jsonl"] < sources["corpus.jsonl"]
    assert len(sources["validation.jsonl"]) == 2
    assert not sources["validation.jsonl"] & sources["corpus.jsonl"]

    caplog.set_level(logging.INFO)
    train_model.main(
        f"--corpus {tmp_path}/corpus.jsonl --held_out {tmp_path}/validation.jsonl --out {tmp_path}/model "
        "--vocab_size 300 --context 32 --d_model 32 --layers 1 --heads 2 "
        "--batch 4 --epochs 2 --save_every 20 --lr 1e-2".split()
    )
    losses = [float(loss) for loss in re.findall(r"held-out loss ([\d.]+)", caplog.text)]
    assert len(losses) > 1
    assert losses[-1] < 0.6 * losses[0]
