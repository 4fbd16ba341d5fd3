import numpy as np
import pytest
import torch
from PIL import Image

from sae_lens_sparsemax.explore.concepts import concepts_of_image, concepts_of_text
from sae_lens_sparsemax.models.encoding import top_concepts
from tests.support.sites import BRIGHT, DEAD


def photo(width: int = 96, height: int = 64) -> tuple[Image.Image, np.ndarray]:
    """A black photo with a bright lower right quarter of its middle square, and where that is."""
    bright = np.zeros((height, width), dtype=bool)
    bright[height // 2 :, width // 2 : width // 2 + height // 2] = True
    return Image.fromarray((255 * bright).astype(np.uint8)), bright


def test_a_concept_of_brightness_lies_over_the_bright_part_of_a_photo_that_is_not_square(clip_and_sae):
    image, bright = photo()
    found = concepts_of_image(*clip_and_sae, image)
    assert found.n_prefix_tokens == 1 and found.image.mode == "RGB"
    assert ((found.mask(BRIGHT) > 0) == bright).all()
    assert not found.mask(DEAD).any()
    assert torch.equal(found.of_image(), found.feature_acts[0])
    assert torch.equal(found.of_image("mean"), found.feature_acts.mean(0))


def test_activations_are_those_of_the_sae_at_its_hook(clip_and_sae):
    model, sae = clip_and_sae
    image, _ = photo()
    _, cache = model.run_with_cache(model.preprocess(image), names_filter="hook_embed")
    assert torch.allclose(concepts_of_image(model, sae, image).feature_acts, sae.encode(cache["hook_embed"])[0])


def test_wrong_concepts_and_saes_are_refused(clip_and_sae):
    model, sae = clip_and_sae
    found = concepts_of_image(model, sae, photo()[0])
    with pytest.raises(ValueError, match="concept must be between 0 and 7, got 8"):
        found.mask(8)
    with pytest.raises(ValueError, match="max"):
        found.of_image("max")  # type: ignore[arg-type]
    sae.cfg.metadata.tokens = "cls"
    try:
        with pytest.raises(ValueError, match="class token alone"):
            concepts_of_image(model, sae, photo()[0]).mask(BRIGHT)
        sae.cfg.metadata.tokens = "all"
        sae.cfg.metadata.hook_name_out = "blocks.0.hook_resid_post"
        with pytest.raises(ValueError, match="transcoder"):
            concepts_of_image(model, sae, photo()[0])
    finally:
        sae.cfg.metadata.tokens, sae.cfg.metadata.hook_name_out = "all", None


def test_top_concepts_are_the_largest_that_are_active():
    assert top_concepts(torch.tensor([0.0, 1, -3, 0, 2]), 4) == [2, 4, 1]
    assert top_concepts(torch.zeros(3), 2) == []


def test_each_token_has_its_text_and_the_saes_activations(language_model_and_sae):
    model, sae = language_model_and_sae
    found = concepts_of_text(model, sae, "The river of stone")
    assert "".join(found.tokens[1:]) == "The river of stone"
    assert found.is_read.tolist() == [False] + [True] * (len(found.tokens) - 1)
    assert not found.feature_acts[0].any()  # the SAE was trained without the token before a text
    _, cache = model.run_with_cache(found.token_ids[None], names_filter=[sae.cfg.metadata.hook_name])
    expected = sae.encode(cache[sae.cfg.metadata.hook_name])[0]
    assert torch.allclose(found.feature_acts[1:], expected[1:], atol=1e-5)


def test_empty_and_overlong_texts_are_refused(language_model_and_sae):
    with pytest.raises(ValueError, match="empty"):
        concepts_of_text(*language_model_and_sae, " \n")
    with pytest.raises(ValueError, match="more than the 32"):
        concepts_of_text(*language_model_and_sae, "river " * 50)
