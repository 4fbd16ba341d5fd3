"""The embedded model and text: small, loadable everywhere, trained, and honestly split."""

import math
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from sae_lens import HookedSAETransformer, SAETransformerBridge
from sae_lens.load_model import load_model
from safetensors import safe_open
from transformer_lens.loading_from_pretrained import get_pretrained_model_config
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_sparsemax.data.quickstart import quickstart_model_path, quickstart_text, quickstart_text_path
from tests.assets.train_model import mean_loss, pack

PATH = str(quickstart_model_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(PATH).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PATH)


@pytest.fixture(scope="module")
def logits(model, tokens):
    with torch.no_grad():
        return model(tokens, attention_mask=torch.ones_like(tokens)).logits


@pytest.fixture(scope="module")
def tokens(tokenizer):
    """A few held-out contexts, packed as SAELens packs them."""
    return contexts(tokenizer, quickstart_text("validation")["text"])[::40][:8]


def contexts(tokenizer, texts):
    ids = tokenizer(list(texts), verbose=False)["input_ids"]
    return pack(ids, tokenizer.bos_token_id, 128, range(len(ids)))


def test_assets_stay_within_the_size_budget():
    files = [file for file in Path(PATH).parent.rglob("*") if file.is_file()]
    assert {"model.safetensors", "train.jsonl", "validation.jsonl", "README.md"} <= {f.name for f in files}
    assert sum(file.stat().st_size for file in files) <= 7_000_000


def test_weights_are_stored_in_half_and_load_in_single_precision(model):
    with safe_open(Path(PATH) / "model.safetensors", "pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float16}  # noqa: SIM118
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_model_predicts_held_out_text_far_better_than_word_frequencies(model, tokenizer):
    held_out = contexts(tokenizer, quickstart_text("validation")["text"])
    counts = torch.bincount(
        contexts(tokenizer, quickstart_text("train")["text"])[:, 1:].flatten(), minlength=len(tokenizer)
    )
    log_frequency = ((counts + 1) / (counts + 1).sum()).log()
    unigram = -log_frequency[held_out[:, 1:]].mean().item()
    loss = mean_loss(model, held_out[::4])
    assert math.exp(unigram) > 400  # the baseline is a real one
    assert loss < unigram - 1.8
    assert math.exp(loss) < 150


@pytest.mark.parametrize("text", ["Call me Ishmael.", "  two  spaces\n\n and a\ttab", "naïve — 北京 🐋", ""])
def test_tokenizer_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_beginning_of_sequence_token_is_the_first_and_the_only_special_one(model, tokenizer):
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    assert model.config.bos_token_id == 0
    assert len(tokenizer) == model.config.vocab_size


def test_splits_share_no_source_and_no_sentence():
    train, validation = quickstart_text("train"), quickstart_text("validation")
    assert not set(train["source"]) & set(validation["source"])
    known = " ".join(train["text"])
    sentences = [s for text in validation["text"] for s in text.split(". ") if len(s) > 100]
    assert len(sentences) > 300
    assert not [s for s in sentences if s in known]


def test_splits_are_large_enough_for_the_quickstart(tokenizer):
    assert contexts(tokenizer, quickstart_text("train")["text"]).numel() > 400_000
    assert contexts(tokenizer, quickstart_text("validation")["text"]).numel() > 35_000


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'train' or 'validation', got 'test'"):
        quickstart_text("test")  # type: ignore[arg-type]


def test_load_dataset_finds_both_splits_in_the_folder(tmp_path):
    found = load_dataset(str(quickstart_text_path()), cache_dir=str(tmp_path))
    assert found["train"]["text"][:] == quickstart_text("train")["text"][:]
    assert found["validation"].num_rows == quickstart_text("validation").num_rows


def test_bridge_computes_the_same_logits_and_residual_stream(model, tokens, logits):
    bridge = SAETransformerBridge.boot_transformers(PATH, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(bridge(tokens), logits, atol=1e-4, rtol=1e-4)
        _, cache = bridge.run_with_cache(tokens, names_filter=["blocks.2.hook_out"], stop_at_layer=3)
        expected = model(tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True)
    torch.testing.assert_close(cache["blocks.2.hook_out"], expected.hidden_states[3], atol=1e-4, rtol=1e-4)


def test_hooked_sae_transformer_computes_the_same_logits(model, tokenizer, tokens, logits):
    # TransformerLens's `from_pretrained` takes names from its own list only, so its parts are called here.
    cfg = get_pretrained_model_config(PATH, device="cpu")
    hooked = HookedSAETransformer(cfg, tokenizer)
    hooked.load_and_process_state_dict(
        convert_gpt2_weights(model, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False
    )
    with torch.no_grad():
        torch.testing.assert_close(hooked(tokens), logits, atol=1e-4, rtol=1e-4)


def test_sae_lens_loads_it_as_a_plain_transformers_model(tokens, logits):
    proxy = load_model("AutoModelForCausalLM", PATH, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(proxy(tokens, return_type="logits"), logits)
