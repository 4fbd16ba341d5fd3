import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sae_lens_sparsemax.evaluation.name_agreement import evaluate_names

N_CLASSES, N_TOKENS, N_IMAGES = 4, 3, 80
WORDS = ["fish", "bird", "boat", "moon"]


def one_concept_per_class(dead: int | None = None) -> StandardSAE:
    sae = StandardSAE(StandardSAEConfig(d_in=N_CLASSES, d_sae=N_CLASSES))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(N_CLASSES))
        sae.b_enc.fill_(-0.2)
        if dead is not None:
            sae.b_enc[dead] = -10
    return sae


def images(labels_of_second_half: str = "same"):
    """Batches of images whose first token is one-hot in their class, and whose embedding is too, in six dimensions."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N_IMAGES // 2).repeat_interleave(2) % N_CLASSES  # the same classes in both halves
    acts = torch.zeros(N_IMAGES, N_TOKENS, N_CLASSES)
    acts[torch.arange(N_IMAGES), 0, labels] = 1 + torch.rand(N_IMAGES, generator=generator)
    embeds = torch.zeros(N_IMAGES, 6)
    embeds[torch.arange(N_IMAGES), labels] = 1
    embeds += 0.05 * torch.randn(N_IMAGES, 6, generator=generator)
    if labels_of_second_half == "next":
        labels = labels.clone()
        labels[1::2] = (labels[1::2] + 1) % N_CLASSES
    yield from zip(acts.split(7), embeds.split(7), labels.split(7), strict=True)


def embeddings(*order: int) -> torch.Tensor:
    return torch.eye(6)[list(order)]


def test_names_are_right_where_they_are_the_class_of_other_images():
    found = evaluate_names(
        one_concept_per_class(), images(), WORDS, embeddings(0, 1, 2, 3), embeddings(1, 0, 2, 3), n_top=5
    )
    assert (found.n_images, found.n_concepts, found.n_one_class, found.chance) == (80, 4, 4, 0.25)
    assert found.from_images == found.from_images_one_class == 1
    assert found.from_decoder == found.from_decoder_one_class == 0.5


def test_names_are_checked_on_the_half_they_do_not_come_from():
    found = evaluate_names(one_concept_per_class(), images("next"), WORDS, embeddings(0, 1, 2, 3), n_top=5)
    assert found.from_images == 0
    assert found.from_decoder is None


def test_concepts_on_too_few_images_are_not_judged():
    words = embeddings(0, 1, 2, 3)
    assert evaluate_names(one_concept_per_class(dead=1), images(), WORDS, words, n_top=5).n_concepts == 3
    assert evaluate_names(one_concept_per_class(), images(), WORDS, words, n_top=11).n_concepts == 0


def test_a_label_without_a_word_is_refused():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\), got 0 to 3"):
        evaluate_names(one_concept_per_class(), images(), WORDS[:3], embeddings(0, 1, 2))


def test_one_image_names_nothing():
    acts, embeds, labels = next(iter(images()))
    one = [(acts[:1], embeds[:1], labels[:1])]
    with pytest.raises(ValueError, match="images with a label must be at least two, .*, got 1$"):
        evaluate_names(one_concept_per_class(), one, WORDS, embeddings(0, 1, 2, 3))
