"""One function opens the model of a saved SAE for every command, whatever the model's class."""

import json

import pytest
import torch
import transformer_lens
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from transformers import AutoTokenizer

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.compare.suggest_k import mean_l0
from sae_lens_sparsemax.explore.app.session import open_session
from sae_lens_sparsemax.models import language_models
from sae_lens_sparsemax.models.at_hook import load_sae, open_text, text_at_hook
from sae_lens_sparsemax.models.splice import Change
from tests.support.tiny_language_model import documents

CONTEXT = 12
HOOKS = {
    "HookedTransformer": "blocks.0.hook_resid_post",
    "TransformerBridge": "blocks.0.hook_resid_post",
    "AutoModelForCausalLM": "model.layers.0",
}


@pytest.fixture
def hooked_transformer(monkeypatch, tiny_model_folder):
    """HookedTransformer loads no local folders, so the name `tiny` gives a random one with the same tokenizer."""
    config = transformer_lens.HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=64, d_head=8, n_heads=2, d_vocab=62, act_fn="gelu", seed=0
    )
    model = transformer_lens.HookedTransformer(config, AutoTokenizer.from_pretrained(tiny_model_folder))
    load = language_models.load_model
    monkeypatch.setattr(
        language_models, "load_model", lambda *args, **kwargs: model if args[1] == "tiny" else load(*args, **kwargs)
    )


@pytest.fixture(params=sorted(HOOKS))
def folder(request, tmp_path, tiny_model_folder, hooked_transformer):
    """A saved SAE on a model of each class."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents(40)))
    torch.manual_seed(1)
    metadata = SAEMetadata(
        model_name="tiny" if request.param == "HookedTransformer" else str(tiny_model_folder),
        model_class_name=request.param,
        hook_name=HOOKS[request.param],
        context_size=CONTEXT,
        prepend_bos=True,
        exclude_special_tokens=True,
        dataset_path=str(text),
        held_out_fraction=0.3,
    )
    StandardSAE(StandardSAEConfig(d_in=16, d_sae=40, metadata=metadata)).save_model(tmp_path / "sae")
    return tmp_path / "sae"


def test_a_text_becomes_the_same_tokens_and_activations_with_every_class(folder):
    at_hook = open_text(load_sae(str(folder)))
    tokens = at_hook.tokens("w1 w2 w59")
    assert tokens.tolist() == [0, 3, 4, 61]
    assert at_hook.token_texts([3, 4]) == ["w1", "w2"]
    acts = at_hook.activations(tokens[None])
    seen = at_hook.model.run_with_cache(tokens[None], names_filter=[at_hook.hook_name])[1][at_hook.hook_name]
    assert torch.equal(acts, seen) and acts.shape == (1, 4, 16)
    assert at_hook.is_read(tokens[None], acts).tolist() == [[False, True, True, True]]


def test_every_command_opens_every_class(folder, tmp_path, capsys):
    few = ["--batches", "1", "--batch_size", "2", "--n_tokens", "48", "--n_prediction_tokens", "24"]
    assert main(["evaluate", str(folder), "--suite", "all", *few]) == 0
    assert "CE loss score (1 is best)" in capsys.readouterr().out
    pages = tmp_path / "pages"
    assert main(["explore", str(folder), "--output", str(pages), "--samples", "4", "--showcase", "1"]) == 0
    assert (pages / "index.html").is_file()
    session = open_session(str(folder))
    plain = session.inspect("w1 w2 w3", None, {})
    changed = session.inspect("w1 w2 w3", None, {c["concept"]: Change(0.0) for c in plain["concepts"]})
    assert plain["tokens"] == ["<s>", "w1", "w2", "w3"]
    assert any(abs(o["after"] - o["before"]) > 1e-6 for o in changed["outcomes"])
    settings = {"datasets": {"t": {"path": str(folder.parent / "text.jsonl")}}, "n_tokens": 48}
    assert mean_l0(folder, settings)[0] > 0


def test_a_command_loads_the_sae_and_the_model_once(folder, monkeypatch):
    counts = {"model": 0, "sae": 0}

    def count(owner, name, key):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            counts[key] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(SAE, "load_from_disk", "sae")
    count(language_models, "load_language_model", "model")
    few = ["--batches", "1", "--batch_size", "2", "--n_tokens", "48", "--n_prediction_tokens", "24"]
    assert main(["evaluate", str(folder), "--suite", "all", *few]) == 0
    assert counts == {"model": 1, "sae": 1}


def test_the_mask_leaves_out_positions_special_tokens_and_large_norms(folder):
    sae = load_sae(str(folder))
    sae.cfg.metadata.seqpos_slice = (1, -1)
    sae.cfg.metadata.max_norm = 2.0
    at_hook = text_at_hook(open_text(sae).model, sae)
    tokens = torch.tensor([[3, 0, 4, 5, 6]])
    acts = torch.ones(1, 5, 16) / 4
    assert at_hook.is_read(tokens, acts).tolist() == [[False, False, True, True, False]]
    acts[0, 2] *= 3
    assert at_hook.is_read(tokens, acts).tolist() == [[False, False, False, True, False]]
    assert at_hook.is_read(tokens).tolist() == [[False, False, True, True, False]]


def test_what_the_metadata_lack_or_contradict_is_said(folder):
    sae = load_sae(str(folder))
    sae.cfg.d_in = 8
    with pytest.raises(ValueError, match=r"'sae\.d_in' is 8, but .* are 16 wide"):
        open_text(sae)
    sae = load_sae(str(folder))
    sae.cfg.metadata.model_name = None
    with pytest.raises(ValueError, match="have no 'model_name'; give --model_name"):
        open_text(sae)
    with pytest.raises(ValueError, match="There is no folder 'nowhere'"):
        load_sae("nowhere")
