from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

from sae_lens_sparsemax.compare.config import ComparedImages
from sae_lens_sparsemax.evaluation.classification import accuracy, disjoint_splits, text_prototypes
from sae_lens_sparsemax.evaluation.concept_counts import (
    activation_quantile,
    count_concepts,
    frequency_matched_concepts,
    most_counted,
    random_concepts,
)
from sae_lens_sparsemax.evaluation.settings import VisionSuiteSettings
from sae_lens_sparsemax.evaluation.zero_shot import evaluate_zero_shot
from sae_lens_sparsemax.models.splice import MaskedReconstruction
from sae_lens_sparsemax.settings.checking import build
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig
from tests.support.places import SHARED_DATA

D_IN, D_SAE, TOKENS = 6, 24, 4


@pytest.fixture
def sae():
    torch.manual_seed(0)
    return StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class PixelModel:
    """A model whose layer is the pixels themselves and whose embedding is their mean over tokens."""

    def activations(self, pixel_values):
        return pixel_values

    def embeddings(self, pixel_values, edit=None):
        return self.activations(pixel_values if edit is None else edit(pixel_values)).mean(1)


MODEL: Any = PixelModel()


def images(n, seed, n_classes=3):
    """Three kinds of images, one for each direction of the prototypes, with noise."""
    labels = torch.arange(n) % n_classes
    pixels = 2 * torch.eye(n_classes, D_IN)[labels][:, None] + 0.6 * random(n, TOKENS, D_IN, seed=seed)
    return list(zip(pixels.split(7), labels.split(7), strict=True))


def test_counts_equal_those_of_a_loop_over_images_and_tokens(sae):
    batches = images(30, seed=1)
    counts = count_concepts(sae, MODEL, batches, 3, threshold=0.3, chunk_size=5, progress=False)
    expected = torch.zeros(3, D_SAE, dtype=torch.int32)
    for pixels, labels in batches:
        for image, label in zip(pixels, labels, strict=True):
            for token in image:
                with torch.no_grad():
                    expected[label] += (sae.encode(token[None])[0] > 0.3).int()
    assert torch.equal(counts, expected)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2"):
        count_concepts(sae, MODEL, batches, 2, progress=False)


def test_quantile_threshold_leaves_that_share_of_the_activations_below(sae):
    batches = images(60, seed=1)
    threshold = activation_quantile(sae, MODEL, batches, 0.75)
    with torch.no_grad():
        acts = torch.cat([sae.encode(pixels) for pixels, _ in batches])
    assert (acts[acts > 0] <= threshold).double().mean() == pytest.approx(0.75, abs=0.01)


def test_most_counted_concepts_are_the_most_frequent_and_never_uncounted():
    counts = torch.tensor([[5, 0, 9, 5, 0], [0, 0, 0, 0, 2]], dtype=torch.int32)
    assert most_counted(counts, 2).nonzero().tolist() == [[0, 0], [0, 2], [1, 4]]
    assert most_counted(counts, 5).sum(1).tolist() == [3, 1]


def test_controls_have_as_many_concepts_and_the_matched_ones_are_as_frequent_but_others():
    counts = (torch.rand(4, 300, generator=torch.Generator().manual_seed(0)).pow(6) * 1000).int()
    counts[:, 280:] = 0
    top = most_counted(counts, 10)
    drawn = random_concepts(counts, top)
    matched = frequency_matched_concepts(counts, top)
    for control in (drawn, matched):
        assert control.sum(1).tolist() == [10] * 4
        assert not control[:, 280:].any()
    assert not (matched & top).any()
    total = counts.sum(0).double()
    for row in range(4):
        wanted = total[top[row]].mean()
        assert abs(total[matched[row]].mean() - wanted) < 0.3 * wanted
        assert total[drawn[row]].mean() < 0.7 * wanted
    assert torch.equal(matched, frequency_matched_concepts(counts, top))
    assert not torch.equal(drawn, random_concepts(counts, top, seed=1))


@pytest.mark.parametrize("sparse", [False, True])
def test_masked_reconstruction_decodes_only_what_each_image_keeps(sae, sparse):
    if sparse:
        torch.manual_seed(0)
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5, use_sparse_activations=True))
    x, keep = random(9, TOKENS, D_IN), random(9, D_SAE, seed=2) > 0
    with torch.no_grad():
        acts = sae.encode(x.reshape(-1, D_IN))
        acts = (acts.to_dense() if sparse else acts).reshape(9, TOKENS, D_SAE)
        expected = sae.decode(acts * keep[:, None])
    assert torch.allclose(MaskedReconstruction(sae, chunk_size=3 * TOKENS).edit(keep)(x), expected, atol=1e-6)
    with pytest.raises(ValueError, match="keep must be a mask for each of the 9 images, got 8"):
        MaskedReconstruction(sae).edit(keep[:8])(x)


def test_zero_shot_equals_a_classification_done_by_hand(sae):
    counting, test = images(45, seed=1), images(31, seed=2)
    prototypes = torch.eye(3, D_IN)
    result = evaluate_zero_shot(sae, MODEL, counting, test, prototypes, n_concepts=(1, 6), progress=False)
    pixels, labels = torch.cat([p for p, _ in test]), torch.cat([t for _, t in test])
    plain = MODEL.embeddings(pixels)[:, :3].argmax(-1)
    assert result.no_sae.images == pytest.approx((plain == labels).double().mean().item())
    assert (result.n_images, result.n_classes) == (31, 3)
    counts = count_concepts(sae, MODEL, counting, 3, progress=False)
    with torch.no_grad():
        everything = MODEL.embeddings(sae(pixels))[:, :3].argmax(-1)
        assert result.all_concepts.images == pytest.approx((everything == labels).double().mean().item())
        for row in result.masked:
            if row.concepts != "top":
                continue
            own = most_counted(counts, row.n)[labels if row.mask == "oracle" else plain]
            keep = own if row.switch == "on" else ~own
            out = MODEL.embeddings((sae.encode(pixels) * keep[:, None]) @ sae.W_dec + sae.b_dec)
            answer = out[:, :3].argmax(-1)
            assert row.accuracy.images == pytest.approx((answer == labels).double().mean().item())
    assert len(result.masked) == 2 * 2 * 3 * 2


def test_labels_in_another_order_fail_the_gate(sae):
    test = [(pixels, (labels + 1) % 3) for pixels, labels in images(30, seed=2)]
    with pytest.raises(ValueError, match="check that the class names are in the order of the labels"):
        evaluate_zero_shot(sae, MODEL, images(30, seed=1), test, torch.eye(3, D_IN), progress=False)
    with pytest.raises(ValueError, match="read twice"):
        evaluate_zero_shot(sae, MODEL, [], iter(test), torch.eye(3, D_IN), progress=False)


def test_accuracy_over_classes_weighs_rare_classes_alike():
    labels, predicted = torch.tensor([0, 0, 0, 3]), torch.tensor([0, 0, 1, 1])
    result = accuracy(predicted, labels)
    assert result.images == pytest.approx(2 / 4)
    assert result.classes == pytest.approx((2 / 3 + 0) / 2)


def test_prototypes_average_normalised_templates_and_refuse_ones_without_a_place_for_the_name():
    vectors = {"a cat": [3.0, 0.0], "the cat": [0.0, 5.0], "a dog": [1.0, 0.0], "the dog": [1.0, 0.0]}
    encode = lambda texts: torch.tensor([vectors[text] for text in texts])  # noqa: E731
    prototypes = text_prototypes(encode, ["cat", "dog"], ["a {}", "the {}"])
    assert torch.allclose(prototypes, torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]]))
    with pytest.raises(ValueError, match=r"got \['a thing'\]"):
        text_prototypes(encode, ["cat"], ["a {}", "a thing"])


def test_splits_share_no_image_and_divide_every_class():
    labels = torch.arange(50) % 7
    counting, test = disjoint_splits(labels)
    assert sorted(counting + test) == list(range(50))
    for label in range(7):
        n = int((labels == label).sum())
        assert int((labels[counting] == label).sum()) == round(0.5 * n)


@pytest.mark.slow
def test_mini_clip_passes_the_gate_only_with_its_labels_in_order():
    data = SHARED_DATA
    if not data.exists():
        pytest.skip(f"no shared data at {data}")
    from datasets import load_dataset
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    folder = str(data / "models" / "mini-clip-cifar10")
    model = CLIPModel.from_pretrained(folder).eval()
    processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    layer = model.vision_model.encoder.layers[-2]

    class Clip:
        def activations(self, pixel_values):
            seen = []
            self.embeddings(pixel_values, lambda output: seen.append(output) or output)
            return seen[0]

        def embeddings(self, pixel_values, edit=None):
            hooks = [] if edit is None else [layer.register_forward_hook(lambda module, args, output: edit(output))]
            try:
                with torch.no_grad():
                    return model.get_image_features(pixel_values=pixel_values).pooler_output
            finally:
                for hook in hooks:
                    hook.remove()

    def encode_text(texts):
        return model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output

    rows = load_dataset("parquet", data_files=str(data / "images" / "cifar10_test.parquet"), split="train")
    names = rows.features["label"].names
    rows = rows.select(range(400))
    pixels = processor(rows["image"][:], return_tensors="pt")["pixel_values"]
    labels = torch.tensor(rows["label"][:])
    counting, test = disjoint_splits(labels)
    batches = [[(pixels[index], labels[index])] for index in (counting, test)]
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=128, d_sae=64))
    prototypes = text_prototypes(encode_text, names, ["a photo of a {}"])
    clip: Any = Clip()
    result = evaluate_zero_shot(sae, clip, *batches, prototypes, n_concepts=(5,), progress=False)
    assert 0.55 < result.no_sae.images < 0.8
    with pytest.raises(ValueError, match="check that the class names are in the order of the labels"):
        evaluate_zero_shot(sae, clip, *batches, prototypes.roll(1, 0), n_concepts=(5,), progress=False)


@pytest.mark.parametrize("templates", [["a photo"], ["a {} of a {}"], []])
@pytest.mark.parametrize(
    ("name", "given_to"),
    [
        ("templates", lambda templates: text_prototypes(torch.zeros, ["cat"], templates)),
        ("evaluate.templates", lambda templates: build(VisionSuiteSettings, {"templates": templates}, "evaluate")),
        ("images.templates", lambda templates: build(ComparedImages, {"templates": templates}, "images")),
        (
            "eval_templates",
            lambda templates: VisionSAERunnerConfig(TopKTrainingSAEConfig(4, 8, k=2), eval_templates=templates),
        ),
    ],
)
def test_templates_have_one_place_for_the_name_wherever_they_are_given(name, given_to, templates):
    with pytest.raises(ValueError, match=rf"^{name} must be texts with one {{}} each for the class name, got \["):
        given_to(templates)
