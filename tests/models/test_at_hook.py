"""One function opens the model of a saved SAE for every command, whatever the model's class."""

import json
from types import SimpleNamespace

import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig, Transcoder, TranscoderConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.temporal_sae import TemporalSAE, TemporalSAEConfig
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.compare.suggest_k import mean_l0
from sae_lens_sparsemax.evaluation.harness import evaluate_sae, open_contexts
from sae_lens_sparsemax.evaluation.predictions import evaluate_cross_entropy_baseline, evaluate_divergence
from sae_lens_sparsemax.evaluation.settings import EvaluationSettings
from sae_lens_sparsemax.explore.app.session import open_session
from sae_lens_sparsemax.figures.inputs import reference_contexts
from sae_lens_sparsemax.models import language_models
from sae_lens_sparsemax.models.at_hook import TextAtHook, open_text, text_at_hook
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.models.splice import Change
from sae_lens_sparsemax.models.vision_at_hook import open_vision
from tests.support.tiny_language_model import documents

CONTEXT = 12
HOOKS = {
    "HookedTransformer": "blocks.0.hook_resid_post",
    "TransformerBridge": "blocks.0.hook_resid_post",
    "AutoModelForCausalLM": "model.layers.0",
}


@pytest.fixture
def save_sae(tmp_path, tiny_model_folder, hooked_transformer):
    """Saves an SAE on a model of a class, at a hook of it; further arguments are metadata."""

    def save(model_class_name, hook_name, d_in, **given):
        text = tmp_path / "text.jsonl"
        text.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents(40)))
        torch.manual_seed(1)
        metadata = {
            "model_name": "tiny" if model_class_name == "HookedTransformer" else str(tiny_model_folder),
            "model_class_name": model_class_name,
            "hook_name": hook_name,
            "context_size": CONTEXT,
            "prepend_bos": True,
            "exclude_special_tokens": True,
            "dataset_path": str(text),
            "held_out_fraction": 0.3,
        }
        config = StandardSAEConfig(d_in=d_in, d_sae=40, metadata=SAEMetadata(**metadata | given))
        StandardSAE(config).save_model(tmp_path / "sae")
        return tmp_path / "sae"

    return save


@pytest.fixture(params=sorted(HOOKS))
def folder(request, save_sae):
    """A saved SAE on a model of each class."""
    return save_sae(request.param, HOOKS[request.param], d_in=16)


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
    assert main(["explore", str(folder), "--output_path", str(pages), "--samples", "4", "--showcase", "1"]) == 0
    assert (pages / "index.html").is_file()
    session = open_session(str(folder))
    plain = session.inspect("w1 w2 w3", None, {})
    changed = session.inspect("w1 w2 w3", None, {c["concept"]: Change(0.0) for c in plain["concepts"]})
    assert plain["tokens"] == ["<s>", "w1", "w2", "w3"]
    assert any(abs(o["after"] - o["before"]) > 1e-6 for o in changed["outcomes"])
    at_hook, concept = open_text(load_sae(str(folder))), plain["concepts"][0]["concept"]
    contexts = reference_contexts(at_hook.model, at_hook.sae, ["w1 w2 w3"], [concept])[concept]
    assert contexts.contexts[0][0] == plain["tokens"] and contexts.n_seen == 3
    settings = {"datasets": {"t": {"path": str(folder.parent / "text.jsonl")}}, "n_tokens": 48}
    assert mean_l0(folder, settings)[0] > 0


# Every class with every hook, and both with one head and with all.
@pytest.mark.parametrize(
    ("model_class", "hook", "head"),
    [
        ("HookedTransformer", "hook_z", 1),
        ("HookedTransformer", "hook_q", None),
        pytest.param("HookedTransformer", "hook_v", 1, marks=pytest.mark.slow),
        pytest.param("TransformerBridge", "hook_z", None, marks=pytest.mark.slow),
        ("TransformerBridge", "hook_q", 1),
        ("TransformerBridge", "hook_v", None),
    ],
)
def test_every_command_opens_hooks_with_heads(save_sae, tmp_path, capsys, model_class, head, hook):
    folder = save_sae(model_class, f"blocks.1.attn.{hook}", d_in=16 if head is None else 8, hook_head_index=head)
    few = ["--batches", "1", "--batch_size", "2", "--n_tokens", "48", "--n_prediction_tokens", "24"]
    assert main(["evaluate", str(folder), "--suite", "all", *few]) == 0
    assert "CE loss score (1 is best)" in capsys.readouterr().out
    pages = tmp_path / "pages"
    assert main(["explore", str(folder), "--output_path", str(pages), "--samples", "4", "--showcase", "1"]) == 0
    session = open_session(str(folder))
    plain = session.inspect("w1 w2 w3 w4", None, {})
    changed = session.inspect("w1 w2 w3 w4", None, {c["concept"]: Change(9.0) for c in plain["concepts"]})
    assert any(abs(o["after"] - o["before"]) > 1e-7 for o in changed["outcomes"])


def test_an_edit_of_one_head_leaves_the_others(save_sae):
    at_hook = open_text(load_sae(str(save_sae("TransformerBridge", "blocks.0.attn.hook_z", 8, hook_head_index=1))))
    acts = torch.randn(2, 5, 2, 8)
    ((_, hook),) = at_hook.hooks(torch.zeros_like)
    edited = hook(acts, None)
    assert not edited[:, :, 1].any() and torch.equal(edited[:, :, 0], acts[:, :, 0])


@pytest.mark.parametrize(
    ("model_class", "hook"),
    [("AutoModelForCausalLM", "model.layers.0.self_attn.q_proj"), ("TransformerBridge", "blocks.0.hook_resid_post")],
)
def test_a_head_of_a_hook_without_heads_is_refused(save_sae, capsys, model_class, hook):
    folder = str(save_sae(model_class, hook, d_in=16, hook_head_index=0))
    for words in (["evaluate", folder], ["explore", folder, "--output_path", folder + "/pages"], ["app", folder]):
        assert main(words) == 2
        assert "has no heads" in capsys.readouterr().err


@pytest.mark.parametrize("given", [{"seqpos_slice": (2, 8)}, {"seqpos_slice": (1, -1, 2)}, {"max_norm": 3.2}, {}])
def test_all_measures_leave_out_what_the_sae_never_saw(save_sae, given):
    sae = load_sae(str(save_sae("TransformerBridge", HOOKS["TransformerBridge"], d_in=16, **given)))
    settings = EvaluationSettings(batches=1, batch_size=8)
    result = evaluate_sae(sae, settings, progress=False)
    at_hook, store, _ = open_contexts(sae, settings)
    tokens = store.get_batch_tokens()
    acts = at_hook.activations(tokens)
    read = acts[at_hook.is_read(tokens, acts)]
    assert 0 < len(read) < tokens.numel() and result["reconstruction"]["n_tokens"] == len(read)
    measured = result["saelens"]
    found = sae.encode(read)
    assert measured["sparsity"]["l0"] == pytest.approx((found != 0).float().sum(-1).mean().item())
    mse = (sae.decode(found) - read).pow(2).sum(-1).mean().item()
    assert measured["reconstruction_quality"]["mse"] == pytest.approx(mse, rel=1e-4)
    density = torch.tensor(result["features"]["feature_density"])
    assert torch.allclose(density, (found != 0).float().mean(0), atol=1e-5)

    def splice(activations, hook):
        mask = at_hook.is_read(tokens, activations)
        return torch.where(mask[..., None], sae(activations), activations)

    with torch.no_grad():
        loss = at_hook.model.run_with_hooks(
            tokens, return_type="both", loss_per_token=True, fwd_hooks=[(at_hook.hook_name, splice)]
        )[1]
    averaged = at_hook.is_read(tokens)[:, :-1]
    ce = measured["model_performance_preservation"]
    assert ce["ce_loss_with_sae"] == pytest.approx(loss[averaged].mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("model_class", "hook"),
    [("TransformerBridge", "blocks.0.hook_mlp_out"), ("AutoModelForCausalLM", "bert.encoder.layer.0.output")],
)
def test_a_model_that_sees_later_tokens_has_no_next_token_measures(save_sae, bert_folder, capsys, model_class, hook):
    folder = str(save_sae(model_class, hook, d_in=16, model_name=str(bert_folder)))
    few = ["--batches", "1", "--batch_size", "2", "--n_tokens", "48", "--n_prediction_tokens", "24"]
    assert main(["evaluate", folder, "--suite", "all", *few]) == 0
    out, err = capsys.readouterr()
    assert "cosine similarity" in out and "CE loss score" not in out
    assert "not measured, the model does not predict next tokens" in err
    assert open_session(folder).inspect("w1 w2", None, {})["outcomes"] is None
    at_hook = open_text(load_sae(folder))
    for measure in (evaluate_cross_entropy_baseline, evaluate_divergence):
        with pytest.raises(ValueError, match="does not predict next tokens"):
            measure(at_hook, [torch.tensor([[2, 3, 4]])], progress=False)


def test_tokens_keep_the_spaces_that_sentencepiece_takes_from_them():
    text = "the quick brown fox says hello 🦊 quickly"
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    raw.train_from_iterator([text.replace("🦊", "the")] * 50, trainer)
    raw.pre_tokenizer = None
    space, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    raw.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>")
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=40))
    at_hook = TextAtHook(sae, SimpleNamespace(tokenizer=tokenizer), "anywhere", [])
    ids = tokenizer(text)["input_ids"]
    texts = at_hook.token_texts(ids)
    assert "".join(texts) == " " + text and len(texts) == len(ids)
    assert " quick" in texts and "🦊" in "".join(texts)
    assert at_hook.token_text(ids[1]) == " quick"


def test_cut_documents_are_said_to_be_cut(save_sae, caplog):
    sae = load_sae(str(save_sae("TransformerBridge", HOOKS["TransformerBridge"], 16, disable_concat_sequences=True)))
    open_contexts(sae, EvaluationSettings(batch_size=2))
    assert f"cut to their first {CONTEXT} tokens" in caplog.text


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


@pytest.mark.parametrize("open_at", [open_text, open_vision])
@pytest.mark.parametrize("hook_name", [None, "blocks.0.hook_resid_post"])
@pytest.mark.parametrize(
    ("kind", "config", "out", "said"),
    [
        (StandardSAE, StandardSAEConfig(d_in=8, d_sae=16), "blocks.0.hook_mlp_out", "transcoder, .* 'blocks"),
        (Transcoder, TranscoderConfig(d_in=8, d_sae=16, d_out=8, apply_b_dec_to_input=False), None, "transcoder"),
        (TemporalSAE, TemporalSAEConfig(d_in=8, d_sae=16, n_heads=1, bottleneck_factor=1), None, "whole contexts"),
    ],
)
def test_what_does_not_reconstruct_its_tokens_is_refused_before_a_model_is_loaded(
    open_at, hook_name, kind, config, out, said
):
    sae = kind(config)
    sae.cfg.metadata = SAEMetadata(model_name="nowhere", hook_name="blocks.0.hook_resid_post", hook_name_out=out)
    with pytest.raises(ValueError, match=said):
        open_at(sae, hook_name=hook_name)
