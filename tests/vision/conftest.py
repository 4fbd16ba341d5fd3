"""Small vision models: random ones of every family, and the trained mini-CLIP where the shared data is at
hand."""

import os
from pathlib import Path

import pytest
import torch

from sae_lens_sparsemax.vision import HookedViT
from tests.vision.tiny_vision_models import tiny_model

SHARED_DATA = Path(os.environ.get("SAE_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


@pytest.fixture
def tiny_clip() -> HookedViT:
    return HookedViT(tiny_model("clip"))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.exists():
        pytest.skip(f"no shared data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def mini_clip(shared_data) -> HookedViT:
    return HookedViT.from_pretrained(str(shared_data / "models" / "mini-clip-cifar10"))
