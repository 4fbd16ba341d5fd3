"""With wandb on, a hook is measured while training as `evaluate` measures it afterwards, whatever model and hook."""

import json
from typing import Any

import pytest
import torch
import wandb
from sae_lens import TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig
from safetensors.torch import load_file

from sae_lens_sparsemax import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.evaluation.harness import evaluate_sae
from sae_lens_sparsemax.evaluation.settings import EvaluationSettings
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.training.config import TextRunnerConfig
from sae_lens_sparsemax.training.log import TrainingLog
from sae_lens_sparsemax.training.text_runner import TextTrainingRunner
from tests.support.close_results import assert_close
from tests.support.tiny_language_model import documents

BRIDGE = "TransformerBridge"
BATCHES = EvaluationSettings(batches=2, batch_size=4)


@pytest.fixture
def train(tmp_path, tiny_model_folder, hooked_transformer, monkeypatch):
    """Trains for eight steps and gives the folder of the SAE and what wandb was given."""
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(TrainingLog, "close", lambda self: None)
    monkeypatch.setattr(LoggingConfig, "log", lambda *_, **__: None)
    monkeypatch.setattr(wandb, "init", lambda **_: None)
    monkeypatch.setattr(wandb, "finish", lambda: None)
    monkeypatch.setattr(wandb, "Histogram", lambda values: None)
    monkeypatch.setattr(wandb, "log", lambda values, **_: logged.append(values))
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(documents(40)))

    def run(model_class: str, hook: str, name: str = "sae", *, use_wandb: bool = True, **changes: Any):
        settings: dict[str, Any] = {
            "sae": TopKTrainingSAEConfig(d_in=0, d_sae=40, k=4),
            "model_name": "tiny" if model_class == "HookedTransformer" else str(tiny_model_folder),
            "model_class_name": model_class,
            "hook_name": hook,
            "dataset_path": str(text),
            "context_size": 12,
            "n_batches_in_buffer": 12,
            "store_batch_size_prompts": 4,
            "train_batch_size_tokens": 32,
            "training_tokens": 8 * 32,
            "n_batches_for_norm_estimate": 4,
            "n_eval_batches": 2,
            "exclude_special_tokens": True,
            "output_path": str(tmp_path / name),
            "checkpoint_path": None,
            "logger": LoggingConfig(log_to_wandb=use_wandb, wandb_log_frequency=1, eval_every_n_wandb_logs=4),
            "verbose": False,
        }
        torch.manual_seed(0)
        TextTrainingRunner(TextRunnerConfig(**settings | changes)).run()
        return tmp_path / name, [line for line in logged if "reconstruction" in line]

    return run


@pytest.mark.parametrize(
    ("model_class", "hook", "changes"),
    [
        ("HookedTransformer", "blocks.0.hook_resid_post", {}),
        pytest.param("HookedTransformer", "blocks.1.attn.hook_q", {}, marks=pytest.mark.slow),
        ("HookedTransformer", "blocks.1.attn.hook_z", {"hook_head_index": 1, "seqpos_slice": (2, 8)}),
        (BRIDGE, "blocks.0.hook_resid_post", {"seqpos_slice": (1, -1, 2), "exclude_special_tokens": [3, 4]}),
        pytest.param(BRIDGE, "blocks.1.attn.hook_z", {}, marks=pytest.mark.slow),
        (BRIDGE, "blocks.1.attn.hook_q", {"hook_head_index": 1}),
        (BRIDGE, "blocks.1.attn.hook_v", {"prefetch_llm_batches": True}),
        ("AutoModelForCausalLM", "model.layers.0", {"eval_batch_size_prompts": 4, "store_batch_size_prompts": 3}),
        pytest.param(BRIDGE, "blocks.0.hook_resid_post", {"sae": "expected_average_only_in"}, marks=pytest.mark.slow),
        (BRIDGE, "blocks.0.hook_resid_post", {"sae": "covariance_whitening"}),
        (BRIDGE, "blocks.0.hook_resid_post", {"sae": "sparsemax"}),
    ],
)
def test_figures_while_training_are_those_of_evaluate(train, model_class, hook, changes):
    if changes.get("sae") == "sparsemax":
        changes = {"sae": SparsemaxTrainingSAEConfig(d_in=0, d_sae=40, target_l0=4.0)}
    elif "sae" in changes:
        changes = {"sae": TopKTrainingSAEConfig(d_in=0, d_sae=40, k=4, normalize_activations=changes["sae"])}
    folder, logged = train(model_class, hook, **changes)
    assert len(logged) == 2
    after = evaluate_sae(load_sae(str(folder)), BATCHES, progress=False)
    during = {key: logged[-1][key] for key in (*after["saelens"], "reconstruction", "ce_degradation")}
    assert "model_performance_preservation" in during
    saved = after["saelens"] | {key: after[key] for key in ("reconstruction", "ce_degradation")}
    # The length of an activation may be moved to the decoder when an SAE is saved.
    for each in (during, saved):
        each["sparsity"].pop("l1")
    json.dumps(saved, allow_nan=False)  # every figure is one
    assert_close(during, saved, rel=2e-4)
    first, last = (line["reconstruction"]["n_tokens"] for line in logged)
    assert first == last  # the same contexts each time


@pytest.mark.parametrize("hook", ["blocks.0.hook_mlp_out", "blocks.0.attn.hook_z"])
def test_bert_gets_no_cross_entropy_while_training(train, bert_folder, caplog, hook):
    folder, logged = train(BRIDGE, hook, model_name=str(bert_folder))
    after = evaluate_sae(load_sae(str(folder)), BATCHES, progress=False)
    assert logged[-1]["reconstruction"]["explained_variance"] == pytest.approx(
        after["reconstruction"]["explained_variance"], rel=1e-5
    )
    for line in logged:
        assert not {"model_performance_preservation", "model_behavior_preservation", "ce_degradation"} & line.keys()
    assert "left out: the model does not predict next tokens" in caplog.text


def test_measuring_changes_nothing_of_the_training(train):
    with_wandb, _ = train(BRIDGE, "blocks.0.hook_resid_post", "with")
    without, _ = train(BRIDGE, "blocks.0.hook_resid_post", "without", use_wandb=False)
    one, other = (load_file(each / "sae_weights.safetensors") for each in (with_wandb, without))
    assert all(torch.equal(one[key], other[key]) for key in one)
