"""What version 0.1 saved loads and continues: a run of 40 steps on a tiny Llama, its checkpoint after 21, its SAE.

`version_0_1/expected.safetensors` holds six inputs and what that version's SAEs made of them.
"""

import json
from pathlib import Path

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.config import LoggingConfig
from safetensors.torch import load_file

from sae_lens_sparsemax import SparsemaxSAE, SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.sae.config import EARLIER_GATE
from sae_lens_sparsemax.training.config import TextRunnerConfig
from sae_lens_sparsemax.training.text_runner import TextTrainingRunner
from tests.support.tiny_language_model import documents, save_tiny_llama

SAVED = Path(__file__).parent / "version_0_1"


@pytest.mark.parametrize(
    ("loader", "folder", "kind"),
    [(SAE, "sae", SparsemaxSAE), (TrainingSAE, "checkpoint", SparsemaxTrainingSAE)],
    ids=["SAE", "training SAE"],
)
def test_saved_saes_give_what_they_gave(loader, folder, kind):
    expected = load_file(SAVED / "expected.safetensors")
    sae = loader.load_from_disk(SAVED / folder)
    assert type(sae) is kind
    with torch.no_grad():
        acts, out = sae.encode(expected["x"]), sae(expected["x"])
    acts = acts.to_dense() if acts.is_sparse else acts
    assert torch.equal(acts != 0, expected[f"{folder}.acts"] != 0)
    torch.testing.assert_close(acts, expected[f"{folder}.acts"])
    torch.testing.assert_close(out, expected[f"{folder}.out"])


def continued(**sae) -> TextRunnerConfig:
    """The run of 40 steps in the current folder, going on from its checkpoint."""
    save_tiny_llama(Path("model"))
    Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(25)))
    return TextRunnerConfig(
        sae=SparsemaxTrainingSAEConfig(d_in=16, d_sae=32, target_l0=4.0, **sae),
        model_name="model",
        model_class_name="TransformerBridge",
        hook_name="blocks.0.hook_out",
        dataset_path="text.jsonl",
        context_size=16,
        store_batch_size_prompts=4,
        n_batches_in_buffer=12,
        train_batch_size_tokens=32,
        training_tokens=32 * 40,
        lr=1e-2,
        lr_warm_up_steps=15,
        feature_sampling_window=7,
        dead_feature_window=5,
        output_path="sae",
        checkpoint_path=None,
        resume_from_checkpoint=str(SAVED / "checkpoint"),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
    )


def test_a_checkpoint_continues_to_the_sae_that_its_run_ended_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TextTrainingRunner(continued(**EARLIER_GATE)).run()
    ended = load_file("sae/sae_weights.safetensors")
    expected = load_file(SAVED / "sae" / "sae_weights.safetensors")
    assert ended.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ended[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: name + text)


def test_a_checkpoint_is_not_continued_with_the_passes_that_are_the_default_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"sae.passes must be 1, got 2; .*as in the checkpoint"):
        TextTrainingRunner(continued()).run()
