import pytest
import torch
from PIL import Image

from sae_lens_sparsemax.data.class_names import known_words, read_words, shipped_words
from sae_lens_sparsemax.evaluation.naming import decoder_directions, embed_words, image_directions, name_concepts


def test_the_nearest_word_relative_to_the_means_is_the_name():
    words, embeds = ["cat", "dog"], torch.tensor([[1.0, 0.1], [1.0, -0.1]])
    directions = torch.tensor([[5.0, 0.4], [5.0, -0.2], [0.0, 0.0]])
    first, second, dead = name_concepts(directions, words, embeds, mean_embed=torch.tensor([5.0, 0.0]))
    assert (first.name, second.name, dead) == ("cat", "dog", None)
    assert first.similarity == pytest.approx(1) and first.margin == pytest.approx(2)


def test_image_directions_weigh_images_by_their_activations():
    embeds = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    found = image_directions(
        embeds, torch.tensor([[0, 1], [1, -1], [-1, -1]]), torch.tensor([[3.0, -1], [2, 9], [1, 1]])
    )
    assert torch.allclose(found, torch.tensor([[0.75, 0.25], [0, 1], [0, 0]]))


def test_decoder_directions_are_what_a_row_adds_to_the_embedding(clip_and_sae):
    model, sae = clip_and_sae
    row = sae.W_dec[0]
    with torch.no_grad():
        # Far out along a row nothing else is left, and the norm divides the length out.
        embed = model.model.visual_projection(model.ln_final(1e4 * row) - model.ln_final.wrapped.bias)
    assert torch.cosine_similarity(decoder_directions(model, sae)[0], embed, dim=0) > 0.999


def test_what_cannot_be_named_is_refused(clip_and_sae):
    model, sae = clip_and_sae
    with pytest.raises(ValueError, match="at least two words"):
        name_concepts(torch.ones(1, 2), ["cat"], torch.ones(1, 2))
    sae.cfg.metadata.hook_name = "blocks.0.hook_mlp_out.hook_z"
    try:
        with pytest.raises(ValueError, match="Name the concepts from images"):
            decoder_directions(model, sae)
    finally:
        sae.cfg.metadata.hook_name = "hook_embed"


def test_word_lists_are_read_and_checked(tmp_path):
    (tmp_path / "words.txt").write_text("cat\n\n sea horse \ncat\n", encoding="utf-8-sig")
    assert read_words(tmp_path / "words.txt") == ["cat", "sea horse"]
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    for name, message in (
        ("none.txt", "must hold words, one a line, got none"),
        ("image.png", "as text"),
        ("missing", "as text"),
    ):
        with pytest.raises(ValueError, match=message):
            read_words(tmp_path / name)
    words = shipped_words()
    assert len(words) == len(set(words)) > 1_000 and "goldfish" in words


def test_words_the_tokenizer_cannot_spell_are_left_out(mini_clip):
    assert known_words(mini_clip.tokenizer, ["cat", "zeppelin", "dog"]) == ["cat", "dog"]
    with pytest.raises(ValueError, match="must hold words .* got 1 unknown"):
        known_words(mini_clip.tokenizer, ["zeppelin"])


def test_a_concept_of_one_class_is_called_after_it(mini_clip, shared_data):
    from sae_lens_sparsemax.data.image_loader import decode_image
    from sae_lens_sparsemax.data.images import class_names_of, load_image_dataset

    data = load_image_dataset(str(shared_data / "images" / "cifar10_test.parquet")).select(range(120))
    names, labels = class_names_of(data, "label"), torch.tensor(data["label"])
    images: list[Image.Image] = [decode_image(image) for image in data["image"]]
    with torch.no_grad():
        embeds = mini_clip(mini_clip.preprocess(images))
    # Each "concept" fires on the images of one class.
    top = [torch.nonzero(labels == label).flatten()[:5] for label in range(10)]
    directions = image_directions(embeds, torch.stack(top), torch.ones(10, 5))
    mean = torch.nn.functional.normalize(embeds, dim=-1).mean(0)
    found = name_concepts(directions, names, embed_words(mini_clip, names), mean_embed=mean)
    assert sum(guess.name == name for guess, name in zip(found, names, strict=True)) >= 8
