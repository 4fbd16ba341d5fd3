"""A vision model and an SAE whose concept BRIGHT fires on bright patches and whose concept DEAD never fires."""

import pytest

from sae_lens_sparsemax.harness import load_sae
from sae_lens_sparsemax.vision import HookedViT
from tests.explore import sites
from tests.vision.conftest import mini_clip, shared_data  # noqa: F401  fixtures


@pytest.fixture(scope="session")
def clip_and_sae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts")
    clip, images = sites.save_clip(folder / "clip"), sites.save_images(folder)
    sae = load_sae(str(sites.save_image_sae(folder / "sae", clip, images)))
    return HookedViT.from_pretrained(str(clip)), sae


@pytest.fixture(scope="session")
def language_model_and_sae(tmp_path_factory):
    from sae_lens_sparsemax.embedded import QUICKSTART
    from sae_lens_sparsemax.training.models import load_language_model

    folder = tmp_path_factory.mktemp("concepts-of-text")
    sae = load_sae(str(sites.save_text_sae(folder / "sae", sites.save_text(folder))))
    return load_language_model("TransformerBridge", QUICKSTART, sae.cfg.metadata.hook_name), sae
