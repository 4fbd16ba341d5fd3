"""Concepts that point the same way, and the tokens they promote, against small cases worked by hand."""

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

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


_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
_MODELS = {
    "gpt2": (lambda **shared: GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, **shared)), "transformer.h.1"),
    "llama": (lambda **shared: LlamaForCausalLM(LlamaConfig(**_SIZES, **shared)), "model.layers.1"),
    "gemma2": (
        lambda **shared: Gemma2ForCausalLM(
            Gemma2Config(**_SIZES, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, **shared)
        ),
        "model.layers.1",
    ),
}


def check_top_tokens(matrix, rows, logits):
    """The tokens promoted and suppressed are those that the model's own norm and head say of the rows."""
    found, logits = token_logits(rows, matrix, 10, progress=False), logits - logits.mean(-1, keepdim=True)
    assert torch.equal(found.promoted, logits.topk(10).indices)
    assert torch.equal(found.suppressed, logits.topk(10, largest=False).indices)


@pytest.mark.parametrize("model_class", ["AutoModelForCausalLM", "TransformerBridge"])
@pytest.mark.parametrize("family", _MODELS)
@torch.no_grad()
def test_promoted_tokens_are_those_of_the_models_own_norm_and_head(tiny_model_folder, tmp_path, family, model_class):
    make, module = _MODELS[family]
    torch.manual_seed(0)
    hf_model = make(vocab_size=62, bos_token_id=0, eos_token_id=0, initializer_range=0.3).eval()
    norm = hf_model.transformer.ln_f if family == "gpt2" else hf_model.model.norm
    norm.weight.normal_(0.3, 0.5)  # some below zero, and far from those of the other families
    hf_model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(tmp_path)
    hook = module if model_class == "AutoModelForCausalLM" else "blocks.1.hook_out"
    matrix = unembedding(load_language_model(model_class, str(tmp_path), hook), hook, 16)
    rows = torch.randn(20, 16) + 1
    check_top_tokens(matrix, rows, hf_model.lm_head(norm(rows)))


@pytest.mark.parametrize("norm", ["LN", "LNPre", "RMS", "RMSPre", None])
@torch.no_grad()
def test_a_hooked_transformers_too(norm):
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=16, n_ctx=8, d_head=8, d_vocab=62, act_fn="gelu", normalization_type=norm, seed=0
    )
    model, rows = HookedTransformer(cfg), torch.randn(20, 16) + 1
    if norm in ("LN", "RMS"):
        model.ln_final.w.normal_(0.3, 0.5)
    logits = (model.ln_final(rows[None])[0] if norm else rows) @ model.W_U
    check_top_tokens(unembedding(model, "blocks.0.hook_resid_post", 16), rows, logits)


def test_a_hook_that_does_not_write_to_the_residual_stream_has_none(tiny_model_folder):
    model = load_language_model("TransformerBridge", str(tiny_model_folder), "blocks.1.hook_out")
    assert unembedding(model, "blocks.1.attn.hook_z", 16) is None
    assert unembedding(model, "blocks.1.hook_out", 12) is None
