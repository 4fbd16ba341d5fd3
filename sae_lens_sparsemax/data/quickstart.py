"""The language model, the text and the vision model that the package carries, so that first runs need no network.

They were made by the scripts in `tests/assets`; `sae_lens_sparsemax/assets/README.md` says from what, under which
licence and with which commands. The images for the vision model are drawn when they are asked for (`drawings`).
"""

import json
from pathlib import Path
from typing import Literal, get_args

from datasets import Dataset

QUICKSTART = "quickstart"
"""In configurations, stands for the embedded model as a model name, and for embedded text or drawings as data set."""

Split = Literal["train", "validation"]

ASSETS = Path(__file__).resolve().parent.parent / "assets"


def quickstart_model_path() -> Path:
    """Folder of the embedded language model, for `from_pretrained` of transformers and its users.

    GPT-2 architecture: 4 layers, d_model 128, contexts of 128 tokens, byte-level BPE of 4,096 tokens.
    """
    return ASSETS / "quickstart_model"


def quickstart_vision_model_path() -> Path:
    """Folder of the embedded vision model, for `HookedViT.from_pretrained`.

    CLIP architecture: 4 layers, d_model 96, images of 32 pixels in patches of 8, which make 16 tokens and CLS; the
    text tower knows the names of the drawings' classes in "a drawing of a {}".
    """
    return ASSETS / "quickstart_vision_model"


def quickstart_text_path() -> Path:
    """Folder of the embedded text; `datasets.load_dataset` finds both splits in it."""
    return ASSETS / "quickstart_text"


def quickstart_text(split: Split) -> Dataset:
    """The embedded text, one passage of 200 to 2,000 characters a row.

    Columns: `text`, and `source`, the chapter or address that the passage comes from. No address and no
    chapter has passages in both splits, and the language model never saw those of `"validation"`.

    Raises:
        ValueError: `split` names neither.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be 'train' or 'validation', got {split!r}")
    # Held in memory: `load_dataset` would leave a converted copy in the user's cache.
    with (quickstart_text_path() / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return Dataset.from_list([json.loads(line) for line in lines])
