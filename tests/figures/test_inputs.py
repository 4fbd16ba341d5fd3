import numpy as np
import pytest
import torch
from PIL import Image

from sae_lens_sparsemax.explore.gather import gather
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.explore.streams import TextStream
from sae_lens_sparsemax.figures import (
    ComparedSAE,
    concepts_of_image,
    concepts_of_text,
    image_concept_card,
    reference_contexts,
    reference_images,
    references,
    text_concept_card,
)
from sae_lens_sparsemax.models.encoding import top_concepts
from tests.support.sites import BRIGHT, DEAD


def photo(n_bright: int) -> Image.Image:
    """A black photo with so many bright patches in its first row."""
    pixels = np.zeros((64, 64), dtype=np.uint8)
    pixels[:16, : 16 * n_bright] = 255
    return Image.fromarray(pixels)


def test_reference_images_are_those_with_the_highest_mean_activation(clip_and_sae):
    model, sae = clip_and_sae
    found = reference_images(model, sae, [photo(n) for n in (1, 0, 4, 2)], [BRIGHT, DEAD], n=2)
    assert found[BRIGHT].indices == [2, 3]
    assert (found[BRIGHT].masks[0] > 0).sum() == 64 * 16
    assert len(found[BRIGHT].activations) == 7 and found[BRIGHT].n_seen == 4 * 17
    assert found[DEAD].images == [] and len(found[DEAD].activations) == 0


def test_reference_contexts_are_those_with_the_largest_activation(language_model_and_sae):
    model, sae = language_model_and_sae
    texts = ["The river", "of stone and said", "house and river"]
    concept = top_concepts(concepts_of_text(model, sae, texts[1]).feature_acts[-1], 1)[0]
    acts = [reference_contexts(model, sae, [text], [concept])[concept].activations for text in texts]
    best = reference_contexts(model, sae, texts, [concept], n=1)[concept]
    assert torch.equal(best.activations, torch.cat(acts))
    largest = max(float(part.abs().max()) for part in acts if len(part))
    assert len(best.contexts) == 1 and float(best.contexts[0][1].abs().max()) == largest


def test_a_row_of_a_comparison_comes_from_an_image(clip_and_sae):
    found = concepts_of_image(*clip_and_sae, photo(2))
    row = ComparedSAE.of("ours", found, n_top=2)
    assert len(row.masks) == 2 and torch.equal(row.feature_acts, found.feature_acts.mean(0))


def test_cards_gather_their_own_examples(clip_and_sae, language_model_and_sae):
    (vit, image_sae), (_, sae) = clip_and_sae, language_model_and_sae
    found = references(image_sae, [BRIGHT, DEAD], n=3)
    best = reference_images(vit, image_sae, found[BRIGHT].images, [BRIGHT], n=3)[BRIGHT]
    assert best.indices == [0, 1, 2] and all(
        (a == b).all() for a, b in zip(best.masks, found[BRIGHT].masks, strict=True)
    )
    assert found[BRIGHT].n_seen == 24 * 17 and sum(found[BRIGHT].class_counts.values()) == 24 and not found[DEAD].images
    assert "is dead" in image_concept_card(DEAD, sae=image_sae).axes[0].texts[0].get_text()

    found = references(sae, [3], settings=ExploreSettings(samples=16))[3]
    tokens, acts = found.contexts[0]
    statistics = gather(sae, TextStream(sae, ExploreSettings(samples=16)), n_examples=1, n_showcase=1, progress=False)
    assert acts.max() == statistics.highest[3] == found.activations.max()
    assert len(found.activations) == statistics.n_active[3] and found.n_seen == statistics.n_tokens
    assert len(tokens) == len(acts) and found.promoted[0][1] > 0 > found.suppressed[0][1]
    with pytest.raises(ValueError, match="contexts must be given, or sae"):
        text_concept_card(3)
    with pytest.raises(ValueError, match="concept must be between 0 and 95, got 96"):
        text_concept_card(96, sae=sae)


@pytest.mark.parametrize("wrong", [-1, 10**6, 2.5, "2"])
def test_concepts_that_are_none_are_refused_however_they_are_gathered(wrong, clip_and_sae, language_model_and_sae):
    (vit, image_sae), (model, sae) = clip_and_sae, language_model_and_sae
    for gather_them in (
        lambda: reference_images(vit, image_sae, [photo(1)], [wrong]),
        lambda: reference_contexts(model, sae, ["The river"], [wrong]),
        lambda: references(sae, [wrong]),
    ):
        with pytest.raises(ValueError, match="concept must be"):
            gather_them()
    with pytest.raises(ValueError, match="n must be at least 1"):
        reference_contexts(model, sae, ["The river"], [1], n=0)


def test_saes_that_a_card_cannot_show_are_refused_before_anything_is_read(
    clip_and_sae, language_model_and_sae, monkeypatch
):
    (_, image_sae), (_, sae) = clip_and_sae, language_model_and_sae
    monkeypatch.setattr("sae_lens_sparsemax.figures.inputs.encode_batch", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ValueError, match="sae must be one whose examples are images"):
        image_concept_card(3, sae=sae)
    with pytest.raises(ValueError, match="sae must be one whose examples are contexts"):
        text_concept_card(3, sae=image_sae)
    monkeypatch.setattr(image_sae.cfg.metadata, "tokens", "cls")
    with pytest.raises(ValueError, match="class token alone"):
        image_concept_card(3, sae=image_sae)
