"""The evaluator against the same numbers worked out by hand."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from datasets import Value
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_sparsemax.data.images import encoded_images
from sae_lens_sparsemax.data.labelled_images import random_images
from sae_lens_sparsemax.evaluation.classification import contrastive_loss, one_of_each_class, text_prototypes
from sae_lens_sparsemax.evaluation.vision_evaluator import VisionEvaluator, load_evaluator
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook
from tests.support.tiny_images import gray_levels

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def sae():
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=64, k=4))
    with torch.no_grad():
        sae.W_enc.normal_()
        sae.W_dec.copy_(sae.W_enc.T / 32)
    return sae


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def prototypes() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(3, 24, generator=torch.Generator().manual_seed(6)), dim=-1)


def identity_sae() -> StandardSAE:
    """Reconstructs exactly: a concept for each direction and its opposite."""
    sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=64))
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([torch.eye(32), -torch.eye(32)]))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


@pytest.mark.parametrize("n_parts", [2, 5])
def test_parts_together_measure_what_one_process_does(tiny_clip, sae, images, prototypes, n_parts):
    """Each part is that of a thread here; of five parts, the last two have no images."""
    met, left = threading.Barrier(n_parts), [None] * n_parts

    def evaluate(number):
        def gather(own):
            left[number] = own
            met.wait(20)
            found = list(left)
            met.wait(20)
            return found

        at_hook = VisionAtHook(copy.deepcopy(tiny_clip), HOOK)
        shared = {"part": (number, n_parts), "gather": gather}
        return VisionEvaluator(at_hook, images.split(3), prototypes, LABELS, **shared)(copy.deepcopy(sae))

    with ThreadPoolExecutor(n_parts) as pool:
        found = list(pool.map(evaluate, range(n_parts)))
    whole = VisionEvaluator(VisionAtHook(tiny_clip, HOOK), images.split(3), prototypes, LABELS)(sae)
    assert all(each == pytest.approx(whole, rel=1e-6) for each in found)


@torch.no_grad()
def test_metrics_are_those_worked_out_by_hand(tiny_clip, sae, images, prototypes):
    metrics = VisionEvaluator(VisionAtHook(tiny_clip, HOOK), images.split(3), prototypes, LABELS)(sae)
    _, cache = tiny_clip.run_with_cache(images, names_filter=HOOK)
    x = cache[HOOK].flatten(0, 1).double()
    out = sae(cache[HOOK]).flatten(0, 1).double()
    expected = 1 - (x - out).square().sum() / (x - x.mean(0)).square().sum()
    assert metrics["explained_variance"] == pytest.approx(expected.item(), abs=1e-6)
    assert metrics["l0"] == pytest.approx((sae.encode(cache[HOOK]) != 0).float().sum(-1).mean().item())
    embeds = tiny_clip.run_with_hooks(images, fwd_hooks=[(HOOK, lambda a, hook: sae(a))])
    for name, e in (("", embeds), ("_without_sae", tiny_clip(images))):
        logits = tiny_clip.zero_shot_logits(e, prototypes)
        accuracy = (logits.argmax(-1) == LABELS).float().mean()
        assert metrics[f"zero_shot_accuracy{name}"] == pytest.approx(accuracy.item())
        loss = (contrastive_loss(logits[[0, 1, 2]]) + contrastive_loss(logits[[3, 4, 5]])) / 2
        assert metrics[f"contrastive_loss{name}"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("tokens", ["all", "cls", "patches"])
def test_an_exact_sae_changes_nothing(tiny_clip, images, prototypes, tokens):
    metrics = VisionEvaluator(VisionAtHook(tiny_clip, HOOK, tokens), [images], prototypes, LABELS)(identity_sae())
    assert metrics["explained_variance"] == pytest.approx(1, abs=1e-9)
    assert metrics["contrastive_loss"] == pytest.approx(metrics["contrastive_loss_without_sae"], rel=1e-5)


@torch.no_grad()
def test_only_the_chosen_tokens_are_replaced(tiny_clip, sae, images, prototypes):
    def splice_cls(acts, hook):
        acts[:, 0] = sae(acts[:, 0])
        return acts

    metrics = VisionEvaluator(VisionAtHook(tiny_clip, HOOK, "cls"), [images], prototypes, LABELS)(sae)
    embeds = tiny_clip.run_with_hooks(images, fwd_hooks=[(HOOK, splice_cls)])
    logits = tiny_clip.zero_shot_logits(embeds, prototypes)
    expected = (contrastive_loss(logits[[0, 1, 2]]) + contrastive_loss(logits[[3, 4, 5]])) / 2
    assert metrics["contrastive_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_scaled_activations_are_scaled_back(tiny_clip, images):
    metrics = VisionEvaluator(VisionAtHook(tiny_clip, HOOK), [images])(
        identity_sae(), None, ActivationScaler(scaling_factor=0.125)
    )
    assert metrics["explained_variance"] == pytest.approx(1, abs=1e-9)


def test_the_sae_keeps_its_mode_and_the_model_its_hooks(tiny_clip, sae, images):
    sae.train()
    VisionEvaluator(VisionAtHook(tiny_clip, HOOK), [images])(sae)
    assert sae.training
    assert not any(hook.has_hooks() for hook in tiny_clip.hook_dict.values())


def test_heads_are_joined_for_the_sae(tiny_clip, images):
    metrics = VisionEvaluator(VisionAtHook(tiny_clip, "blocks.1.attn.hook_z"), [images])(identity_sae())
    assert metrics["explained_variance"] == pytest.approx(1, abs=1e-9)


def test_labels_are_needed_for_accuracy(tiny_clip, images, prototypes):
    with pytest.raises(ValueError, match="needs the labels"):
        VisionEvaluator(VisionAtHook(tiny_clip, HOOK), [images], prototypes=prototypes)


def test_groups_hold_one_image_of_every_class():
    groups = one_of_each_class(torch.tensor([1, 0, 0, 1, 2, 1]), 3)
    assert [group.tolist() for group in groups] == [[1, 0, 4]]
    assert one_of_each_class(torch.tensor([0, 0]), 2) == []


def test_contrastive_loss_is_that_of_transformers():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    logits = torch.randn(6, 6)
    assert contrastive_loss(logits) == image_text_contrastive_loss(logits)


def test_the_images_of_an_evaluator_are_the_usable_ones_with_their_labels(mini_clip):
    data = encoded_images(gray_levels(20), "image")
    rows = [row if number not in (3, 4) else row | {"image": None} for number, row in enumerate(data)]
    broken = data.from_list(rows, features=data.features)
    asked = {"class_names": None, "templates": ["{}"]}
    images = random_images(broken, 100, mini_clip.image_processor, 8)
    evaluator = load_evaluator(VisionAtHook(mini_clip, HOOK), images, **asked)
    assert sum(map(len, evaluator.pixels)) == len(evaluator.labels) == 18
    order = [
        row for row in torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist() if row not in (3, 4)
    ]
    assert evaluator.labels.tolist() == [row % 2 for row in order]
    with pytest.raises(ValueError, match=r"label_column must be one of 'image'.* got 'class'"):
        images = random_images(data, 100, mini_clip.image_processor, 8, label_column="class")
        load_evaluator(VisionAtHook(mini_clip, HOOK), images, **asked)


def test_images_without_a_label_count_for_reconstruction_alone(tiny_clip, sae, images, prototypes):
    labels = torch.tensor([0, -1, 2, 0, 1, -1, 0])
    known = labels >= 0
    metrics = VisionEvaluator(VisionAtHook(tiny_clip, HOOK), images.split(3), prototypes, labels)(sae)
    whole = VisionEvaluator(VisionAtHook(tiny_clip, HOOK), images.split(3))(sae)
    some = VisionEvaluator(VisionAtHook(tiny_clip, HOOK), [images[known]], prototypes, labels[known])(sae)
    assert metrics["explained_variance"] == pytest.approx(whole["explained_variance"])
    for name in ("zero_shot_accuracy", "contrastive_loss"):
        for suffix in ("", "_without_sae"):
            assert metrics[name + suffix] == pytest.approx(some[name + suffix])


@pytest.mark.parametrize("missing", [-1, None])
def test_without_any_label_nothing_is_classified_and_labels_beyond_the_names_are_refused(mini_clip, missing, caplog):
    data = encoded_images(gray_levels(4), "image").remove_columns("label")
    data = data.add_column("label", [missing] * 4, feature=Value("int64"))
    asked = {"class_names": ["even", "odd"], "templates": ["{}"]}
    evaluator = load_evaluator(
        VisionAtHook(mini_clip, HOOK), random_images(data, 4, mini_clip.image_processor, 2), **asked
    )
    assert evaluator.prototypes is None and sum(map(len, evaluator.pixels)) == 4
    assert "4 of 4 images of given have no label" in caplog.text
    data = data.remove_columns("label").add_column("label", [missing, 0, 1, 2], feature=Value("int64"))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 0 to 2"):
        load_evaluator(VisionAtHook(mini_clip, HOOK), random_images(data, 4, mini_clip.image_processor, 2), **asked)


@torch.no_grad()
def test_prototypes_average_the_templates(mini_clip):
    names, templates = ["cat", "dog"], ["a photo of a {}", "{}"]
    prototypes = text_prototypes(mini_clip.encode_text, names, templates)
    one = torch.nn.functional.normalize(mini_clip.encode_text(["a photo of a dog", "dog"]), dim=-1).mean(0)
    torch.testing.assert_close(prototypes[1], one / one.norm())
