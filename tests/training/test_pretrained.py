"""The SAE that a run starts from: read whole whoever wrote it, and never other than the run's settings say."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from torch.distributed.checkpoint.state_dict_saver import save

from sae_lens_sparsemax import SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.models.shards import SHARDS
from sae_lens_sparsemax.training.config import TextRunnerConfig
from sae_lens_sparsemax.training.runner import pretrained_sae
from sae_lens_sparsemax.training.text_runner import TextTrainingRunner
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig
from sae_lens_sparsemax.training.vision_runner import VisionSAETrainingRunner

CFG = SparsemaxTrainingSAEConfig(d_in=8, d_sae=16, target_l0=4.0)


@pytest.fixture
def trained(tmp_path) -> SparsemaxTrainingSAE:
    sae = SparsemaxTrainingSAE(replace(CFG))
    sae.cfg.gate_scale = 0.7  # moved by target_l0
    sae.save_model(tmp_path / "checkpoint")
    return sae


def asked(folder: Path, sae=CFG) -> SimpleNamespace:
    return SimpleNamespace(from_pretrained_path=str(folder), sae=sae, device="cpu")


def test_the_sae_of_the_checkpoint_is_what_the_run_starts_with(trained, tmp_path):
    cfg = asked(tmp_path / "checkpoint", replace(CFG, d_in=0))
    sae = pretrained_sae(cfg, None)
    assert torch.equal(sae.dictionary.concepts, trained.dictionary.concepts)
    assert (sae.cfg.gate_scale, cfg.sae.d_in) == (0.7, 8)
    assert pretrained_sae(SimpleNamespace(from_pretrained_path=None), None) is None


@pytest.mark.parametrize(
    ("sae", "named"),
    [
        (replace(CFG, target_l0=5.0), r"sae.target_l0 must be 4.0, got 5.0 \(as in the SAE of from_pretrained_path"),
        (replace(CFG, d_sae=32, passes=3), "sae.d_sae must be 16, got 32; sae.passes must be 2, got 3"),
        (replace(CFG, d_in=9), "sae.d_in must be 8, got 9"),
        (replace(CFG, unit_norm_query=False), "sae.unit_norm_query must be True, got False"),
        (TopKTrainingSAEConfig(d_in=8, d_sae=16, k=4), "sae.architecture must be 'sparsemax', got 'topk'"),
    ],
)
def test_settings_that_say_something_else_of_it_are_refused_by_name(trained, sae, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        pretrained_sae(asked(tmp_path / "checkpoint", sae), None)


def test_an_sae_of_another_architecture_is_one_to_start_from(tmp_path):
    cfg = TopKTrainingSAEConfig(d_in=8, d_sae=16, k=4)
    sae = TopKTrainingSAE(cfg)
    sae.save_model(tmp_path / "checkpoint")
    found = pretrained_sae(asked(tmp_path / "checkpoint", replace(cfg)), None)
    assert torch.equal(found.W_enc, sae.W_enc)
    with pytest.raises(ValueError, match="sae.k must be 4, got 5"):
        pretrained_sae(asked(tmp_path / "checkpoint", replace(cfg, k=5)), None)


@pytest.mark.parametrize(
    ("runner", "config"), [(TextTrainingRunner, TextRunnerConfig), (VisionSAETrainingRunner, VisionSAERunnerConfig)]
)
def test_what_is_no_checkpoint_is_refused_before_the_model_is_loaded(runner, config, trained, tmp_path, monkeypatch):
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    trained.save_inference_model(tmp_path / "inference")
    cfg = config(
        sae=CFG,
        train_batch_size_tokens=1024,
        model_name="no model is loaded",
        hook_name="blocks.0.hook_resid_post",
        dataset_path=str(tmp_path / "text.jsonl"),
        from_pretrained_path=str(tmp_path / "checkpoint_"),
    )
    monkeypatch.setattr("sae_lens_sparsemax.training.text_runner.language_model", pytest.fail)
    monkeypatch.setattr("sae_lens_sparsemax.training.vision_runner.vision_model", pytest.fail)
    with pytest.raises(ValueError, match=r"There is no folder .*checkpoint_.*did you mean .*checkpoint'"):
        runner(cfg)
    cfg.from_pretrained_path = str(tmp_path / "inference")
    with pytest.raises(ValueError, match="inference"):
        runner(cfg)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_several_processes_is_read_whole(trained, tmp_path):
    whole, parts = tmp_path / "checkpoint", tmp_path / "of_ranks"
    parts.mkdir()
    (parts / "cfg.json").write_bytes((whole / "cfg.json").read_bytes())
    save({"sae": trained.state_dict(), "optimizer": {}}, checkpoint_id=parts / SHARDS, no_dist=True)
    sae = pretrained_sae(asked(parts), None)
    assert sae.state_dict().keys() == trained.state_dict().keys()
    assert all(torch.equal(sae.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())
    one, other = load_sae(str(whole)), load_sae(str(parts))
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in one.state_dict().items())
    assert one.cfg.to_dict() == other.cfg.to_dict()
    next((parts / SHARDS).glob("*.distcp")).unlink()
    with pytest.raises(ValueError, match="of_ranks' is damaged or cannot be read"):
        load_sae(str(parts))
    (parts / SHARDS / ".metadata").unlink()
    with pytest.raises(ValueError, match="shards' is damaged or cannot be read"):
        load_sae(str(parts))
