"""Folders of pages, made once."""

from pathlib import Path

import pytest
import torch
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig

from sae_lens_sparsemax.explore.run import explore
from sae_lens_sparsemax.explore.settings import ExploreSettings
from tests.support import sites


@pytest.fixture(scope="session")
def image_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in `clip`, its images, and SAEs in `sae` and `other`."""
    folder = tmp_path_factory.mktemp("images")
    clip, images = sites.save_clip(folder / "clip"), sites.save_images(folder)
    sites.save_image_sae(folder / "sae", clip, images)
    sites.save_image_sae(folder / "other", clip, images, seed=1)
    return folder


@pytest.fixture(scope="session")
def image_pages(image_world: Path) -> Path:
    """Two SAEs on images beside each other."""
    settings = ExploreSettings(showcase=6, examples=5, batch_size=5, encoder=str(image_world / "clip"))
    paths = [str(image_world / name) for name in ("sae", "other")]
    return explore(paths, image_world / "pages", settings, progress=False).parent


@pytest.fixture(scope="session")
def text_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text with hostile strings, and an SAE in `sae`."""
    folder = tmp_path_factory.mktemp("text")
    sites.save_text_sae(folder / "sae", sites.save_text(folder))
    return folder


@pytest.fixture(scope="session")
def signed_pages(text_world: Path) -> Path:
    """Pages of an SAE whose activations are of both signs, beside it."""
    torch.manual_seed(0)
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=128, d_sae=32, k=2))
    folder = sites.save_text_sae(text_world / "signed", text_world / "text.jsonl", sae)
    settings = ExploreSettings(samples=16, showcase=2, examples=4, batch_size=8)
    return explore([str(folder)], folder / "explore", settings, progress=False).parent


@pytest.fixture(scope="session")
def text_pages(text_world: Path) -> Path:
    settings = ExploreSettings(samples=40, showcase=3, examples=6, batch_size=8)
    return explore([str(text_world / "sae")], text_world / "pages", settings, progress=False).parent
