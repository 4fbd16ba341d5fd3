from pathlib import Path

import pytest
from tiny_language_model import save_tiny_language_model


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer GPT-2 of width 16 with a tokenizer, as a Hugging Face folder."""
    return save_tiny_language_model(tmp_path_factory.mktemp("tiny-model"))
