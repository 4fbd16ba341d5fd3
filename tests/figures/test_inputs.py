import numpy as np
import torch
from PIL import Image

from sae_lens_sparsemax.figures import (
    ComparedSAE,
    concepts_of_image,
    concepts_of_text,
    reference_contexts,
    reference_images,
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
