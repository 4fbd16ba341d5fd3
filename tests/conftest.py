import os
from pathlib import Path

import pytest
import torch

# Where no GPU is at hand, Triton's kernels run in its interpreter; it reads the variable when first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.tiny_language_model import save_tiny_llama


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 16 with a word-level tokenizer, as a Hugging Face folder."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-model"))
