import math

import pytest
import torch
from datasets import Dataset
from sae_lens import SAETransformerBridge, StandardSAE, StandardSAEConfig
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.load_model import load_model
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens_sparsemax.evaluation.predictions import (
    CrossEntropyBaseline,
    evaluate_cross_entropy,
    evaluate_cross_entropy_baseline,
    evaluate_divergence,
)
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction
from sae_lens_sparsemax.models.at_hook import TextAtHook
from tests.support.tiny_language_model import documents, save_tiny_llama

CONTEXT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


def proxy(folder):
    return load_model("AutoModelForCausalLM", str(folder), device="cpu"), "model.layers.0"


def bridge(folder):
    return SAETransformerBridge.boot_transformers(str(folder), device="cpu"), "blocks.0.hook_out"


def hooked_transformer(folder):
    from transformers import AutoTokenizer

    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=32, d_head=8, d_vocab=62, act_fn="gelu", seed=0, init_weights=True
    )
    model = HookedTransformer(cfg)
    model.set_tokenizer(AutoTokenizer.from_pretrained(folder))
    return model, "blocks.0.hook_resid_post"


def attention_heads(folder):
    return hooked_transformer(folder)[0], "blocks.0.attn.hook_z"


def sae_and_store(model, hook_name):
    torch.manual_seed(1)
    metadata = SAEMetadata(hook_name=hook_name, context_size=CONTEXT, prepend_bos=True)
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=40, metadata=metadata))
    dataset = Dataset.from_list([{"text": text} for text in documents(12)])
    store = ActivationsStore.from_sae(model, sae, dataset, streaming=False, store_batch_size_prompts=4)
    return sae, store


@pytest.mark.parametrize("host", [proxy, bridge, hooked_transformer, attention_heads])
def test_cross_entropy_equals_that_of_run_evals(folder, host):
    model, hook_name = host(folder)
    sae, store = sae_and_store(model, hook_name)
    batches = [store.get_batch_tokens(4) for _ in range(3)]
    assert any((batch == 0).any() for batch in batches)  # the special token that is ignored
    sae, store = sae_and_store(model, hook_name)  # from the start of the data again
    metrics, _ = run_evals(
        sae,
        store,
        model,
        ActivationScaler(),
        EvalConfig(
            batch_size_prompts=4,
            n_eval_reconstruction_batches=3,
            compute_ce_loss=True,
        ),
        exclude_special_tokens=[0],
    )
    at_hook = TextAtHook(sae, model, hook_name, [0])
    baseline = evaluate_cross_entropy_baseline(at_hook, batches, progress=False)
    ours = evaluate_cross_entropy(at_hook, batches, baseline, progress=False)
    theirs = metrics["model_performance_preservation"]
    assert ours.ce_original == pytest.approx(theirs["ce_loss_without_sae"], rel=1e-6)
    assert ours.ce_with_sae == pytest.approx(theirs["ce_loss_with_sae"], rel=1e-6)
    assert ours.ce_zero_ablation == pytest.approx(theirs["ce_loss_with_ablation"], rel=1e-6)
    # A difference of nearly equal numbers, which SAELens takes in float32.
    assert ours.ce_loss_score == pytest.approx(theirs["ce_loss_score"], rel=1e-4)
    assert ours.ce_degradation == pytest.approx(ours.ce_original - ours.ce_with_sae)


def test_reconstruction_metrics_equal_those_of_run_evals(folder):
    model, hook_name = proxy(folder)
    sae, store = sae_and_store(model, hook_name)
    theirs, _ = run_evals(
        sae,
        store,
        model,
        ActivationScaler(),
        EvalConfig(
            batch_size_prompts=4,
            n_eval_sparsity_variance_batches=3,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        ),
        exclude_special_tokens=[0],
    )
    sae, store = sae_and_store(model, hook_name)
    store.exclude_special_tokens = torch.tensor([0])
    ours = evaluate_reconstruction(sae, [store.get_filtered_llm_batch() for _ in range(3)])
    quality = theirs["reconstruction_quality"]
    assert ours.explained_variance == pytest.approx(quality["explained_variance"], rel=1e-6, abs=1e-6)
    assert ours.mse == pytest.approx(quality["mse"], rel=1e-6)
    assert ours.cosine_similarity == pytest.approx(quality["cossim"], rel=1e-6)
    assert ours.l0 == pytest.approx(theirs["sparsity"]["l0"], rel=1e-6)


def test_positions_of_outlying_norm_keep_their_activations(folder):
    model, hook_name = proxy(folder)
    sae, store = sae_and_store(model, hook_name)
    batches = [store.get_batch_tokens(4)]
    at_hook = TextAtHook(sae, model, hook_name, [], max_norm=0)
    baseline = evaluate_cross_entropy_baseline(at_hook, batches, progress=False)
    none_replaced = evaluate_cross_entropy(at_hook, batches, baseline, progress=False)
    assert none_replaced.ce_with_sae == baseline.ce_original
    assert none_replaced.ce_loss_score == 1


def test_scores_are_no_numbers_where_zeros_change_nothing(folder):
    model, hook_name = hooked_transformer(folder)[0], "blocks.0.hook_attn_out"
    with torch.no_grad():
        model.blocks[0].attn.W_O.zero_()
        model.blocks[0].attn.b_O.zero_()
    sae, store = sae_and_store(model, hook_name)
    at_hook, batches = TextAtHook(sae, model, hook_name, []), [store.get_batch_tokens(4)]
    baseline = evaluate_cross_entropy_baseline(at_hook, batches, progress=False)
    assert baseline.ce_original == baseline.ce_zero_ablation
    assert math.isnan(evaluate_cross_entropy(at_hook, batches, baseline, progress=False).ce_loss_score)
    assert math.isnan(evaluate_divergence(at_hook, batches, progress=False).kl_score)


def test_a_baseline_of_other_tokens_is_refused(folder):
    model, hook_name = proxy(folder)
    sae, store = sae_and_store(model, hook_name)
    batches = [store.get_batch_tokens(4)]
    other = CrossEntropyBaseline(n_predictions=7, ce_original=1.0, ce_zero_ablation=2.0)
    with pytest.raises(ValueError, match="7 predictions, but these tokens have 44"):
        evaluate_cross_entropy(TextAtHook(sae, model, hook_name, []), batches, other, progress=False)
