"""Concepts that point the same way, and the tokens they promote, against small cases worked by hand."""

import pytest
import torch

from sae_lens_sparsemax.explore import weights
from sae_lens_sparsemax.explore.weights import nearest_concepts, token_logits, unembedding
from sae_lens_sparsemax.models.language_models import load_language_model


def test_neighbours_are_those_of_highest_cosine(monkeypatch):
    monkeypatch.setattr(weights, "_BLOCK", 8)
    rows = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    found = nearest_concepts(rows, 5, progress=False)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).fill_diagonal_(-2)
    best = cosine.topk(5)
    assert torch.equal(found.concept, best.indices)
    torch.testing.assert_close(found.value, best.values)


def test_a_row_of_zeros_is_near_nothing():
    rows = torch.randn(4, 3)
    rows[2] = 0
    found = nearest_concepts(rows, 3, progress=False)
    assert found.concept[2].tolist() == [-1, -1, -1]
    assert not (found.concept == 2).any() and (found.concept[0] >= 0).sum() == 2


def test_tokens_are_those_whose_logits_change_most_relative_to_the_mean():
    generator = torch.Generator().manual_seed(0)
    rows, matrix = torch.randn(300, 8, generator=generator), torch.randn(8, 40, generator=generator)
    found = token_logits(rows, matrix, 3, progress=False)
    logits = rows @ matrix
    logits = logits - logits.mean(-1, keepdim=True)
    torch.testing.assert_close(logits.gather(1, found.promoted), logits.topk(3).values)
    torch.testing.assert_close(found.promoted_by, logits.topk(3).values)
    torch.testing.assert_close(found.suppressed_by, -(-logits).topk(3).values)


@pytest.mark.parametrize(
    ("model_class", "hook"), [("AutoModelForCausalLM", "model.layers.1"), ("TransformerBridge", "blocks.1.hook_out")]
)
def test_both_ways_to_load_a_model_give_the_gain_of_the_norm_times_the_unembedding(
    tiny_model_folder, model_class, hook
):
    model = load_language_model(model_class, str(tiny_model_folder), hook)
    hf_model = getattr(model, "original_model", None) or model.model
    with torch.no_grad():
        hf_model.model.norm.weight.copy_(torch.rand(16) + 0.5)
        expected = (hf_model.lm_head.weight * hf_model.model.norm.weight).T
    matrix = unembedding(model, hook, 16)
    assert matrix is not None
    torch.testing.assert_close(matrix, expected)


def test_a_hook_that_does_not_write_to_the_residual_stream_has_none(tiny_model_folder):
    model = load_language_model("TransformerBridge", str(tiny_model_folder), "blocks.1.hook_out")
    assert unembedding(model, "blocks.1.attn.hook_z", 16) is None
    assert unembedding(model, "blocks.1.hook_out", 12) is None
