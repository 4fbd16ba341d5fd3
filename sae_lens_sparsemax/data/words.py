"""Word lists that concepts are named from and images are classified with."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from sae_lens_sparsemax.data import class_names

_MAX_WORDS = 50_000


def shipped_words() -> list[str]:
    """All names of classes that the package carries (ImageNet, Caltech101, EuroSAT, Flowers102, ...), each once."""
    words: dict[str, None] = {}
    for file in sorted(files(class_names.__name__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            words |= dict.fromkeys(json.loads(file.read_text(encoding="utf-8")).get("names", []))
    return list(words)


def read_words(path: str | Path) -> list[str]:
    """Words or short phrases from a text file, one a line; empty lines and repetitions are left out.

    Raises:
        ValueError: no such file, no text in UTF-8, no words, or so many that the list must be something else.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The word list {str(path)!r} could not be read as text: {error}") from error
    words = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise ValueError(f"The word list {str(path)!r} holds no words; it needs one a line.")
    if len(words) > _MAX_WORDS:
        raise ValueError(f"The word list {str(path)!r} holds {len(words):,} words; at most {_MAX_WORDS:,} are taken.")
    return words


def known_words(tokenizer: Any, words: list[str]) -> list[str]:
    """The words that a tokenizer can spell; the others would all be embedded as the same unknown token.

    Raises:
        ValueError: it can spell none.
    """
    unknown = tokenizer.unk_token_id
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    known = [word for word, tokens in zip(words, ids, strict=True) if tokens and unknown not in tokens]
    if not known:
        raise ValueError(
            f"The model's tokenizer knows none of the {len(words)} words, the first being {words[0]!r}; give a word "
            "list that fits the model."
        )
    return known
