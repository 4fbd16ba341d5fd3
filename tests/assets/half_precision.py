"""Embedded weights: stored in float16 for their size, loaded and used in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sae_lens_sparsemax.files import atomic_write_text


def save_in_half(model: PreTrainedModel, folder: Path, **config: Any) -> None:
    """Write a model's weights in float16; `config` are entries added to its config.json."""
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    # Without `dtype` the stored type would be the loaded one, and float16 arithmetic is slow on a CPU.
    file = folder / "config.json"
    stored = json.loads(file.read_text("utf-8")) | {"dtype": "float32"} | config
    atomic_write_text(file, json.dumps(stored, indent=2) + "\n")
