"""Saved files: complete or untouched, and refused by name where they do not fit."""

import errno
import json

import pytest
import sae_lens.saes.sae
import torch
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig, TrainingSAE
from safetensors.torch import load_file, save_file

from sae_lens_sparsemax import SparsemaxSAE, SparsemaxTrainingSAE
from tests.support.small_sae import DICTIONARIES, inputs, small_sae

WEIGHTS = "sae_weights.safetensors"


@pytest.mark.parametrize("dictionary", DICTIONARIES.values(), ids=DICTIONARIES)
def test_training_and_inference_files_load_to_equal_outputs(dictionary, tmp_path):
    sae, x = small_sae(**dictionary, query_projection=True, gate_scale=1 / 3), inputs()
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "inference")
    checkpoint, inference = SAE.load_from_disk(tmp_path / "checkpoint"), SAE.load_from_disk(tmp_path / "inference")
    assert type(checkpoint) is type(inference) is SparsemaxSAE
    with torch.no_grad():
        assert torch.equal(checkpoint.encode(x), inference.encode(x))
        assert torch.equal(checkpoint(x), inference(x))
        torch.testing.assert_close(inference(x), sae(x), rtol=1e-4, atol=1e-4)
    assert checkpoint.cfg.gate_scale == inference.cfg.gate_scale == 1 / 3


def test_a_training_checkpoint_loads_bit_for_bit_as_a_training_sae(tmp_path):
    sae = small_sae(gate_scale=1 / 3, target_l0=5.0)
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert type(loaded) is SparsemaxTrainingSAE
    assert loaded.cfg == sae.cfg
    for name, value in sae.state_dict().items():
        assert loaded.state_dict()[name].dtype == value.dtype
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("loader", [SAE, TrainingSAE])
def test_loading_in_another_dtype_keeps_g_exact(loader, dtype, tmp_path):
    small_sae(gate_scale=1 / 3, query_projection=True).save_model(tmp_path)
    sae = loader.load_from_disk(tmp_path, dtype=dtype)
    assert sae.cfg.gate_scale == 1 / 3
    if loader is TrainingSAE:
        assert sae.gate_scale == 1 / 3
        assert sae.b_dec_is_initialised.dtype == torch.bool and sae.b_dec_is_initialised
    with torch.no_grad():
        out = sae(inputs(dtype=getattr(torch, dtype)))
    assert str(out.dtype) == f"torch.{dtype}"
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("form", ["save_model", "save_inference_model"])
@pytest.mark.parametrize("fails", ["weights", "config"])
def test_a_save_that_fails_leaves_the_earlier_files_as_they_were(form, fails, error, tmp_path, monkeypatch):
    getattr(small_sae(seed=0), form)(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def half_a_file(state_dict, path):
        path.write_bytes(b"half")
        raise error

    def half_a_config(config, file):
        file.write("{")
        raise error

    if fails == "weights":
        monkeypatch.setattr(sae_lens.saes.sae, "save_file", half_a_file)
    else:
        monkeypatch.setattr(sae_lens.saes.sae.json, "dump", half_a_config)
    with pytest.raises(type(error)):
        getattr(small_sae(seed=1), form)(tmp_path)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    SAE.load_from_disk(tmp_path)


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    weights, config = small_sae().save_model(str(tmp_path))
    assert weights == tmp_path / WEIGHTS and config == tmp_path / "cfg.json"
    assert {file.name for file in tmp_path.iterdir()} == {"notes.txt", "cfg.json", WEIGHTS}


@pytest.mark.parametrize("loader", [SAE, TrainingSAE])
@pytest.mark.parametrize("name", ["dictionary.concepts", "dictionary.W_v", "b_dec"])
def test_a_missing_tensor_is_named(loader, name, tmp_path):
    small_sae().save_model(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    del weights[name]
    save_file(weights, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"missing .*{name}"):
        loader.load_from_disk(tmp_path)


def test_unknown_and_misshapen_tensors_are_named(tmp_path):
    sae = small_sae()
    sae.save_inference_model(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    save_file(weights | {"threshold": torch.zeros(80), "b_enc": torch.zeros(79)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"unknown threshold; b_enc has shape \(79,\), not \(80,\)"):
        SAE.load_from_disk(tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    topk = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=12, d_sae=80, k=4))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    sae = small_sae()
    sae.save_model(ours)
    topk.save_model(theirs)
    with pytest.raises(ValueError, match="of another architecture"):
        sae.load_weights_from_checkpoint(theirs)
    with pytest.raises(ValueError, match="inference SAE"):
        sae.save_inference_model(tmp_path / "inference")
        sae.load_weights_from_checkpoint(tmp_path / "inference")
    (ours / WEIGHTS).write_bytes((theirs / WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match="of another architecture"):
        TrainingSAE.load_from_disk(ours)


def test_weights_of_the_other_structure_are_refused(tmp_path):
    small_sae(structure="mlp").save_model(tmp_path)
    with pytest.raises(ValueError, match=r"missing dictionary.W_k.*unknown dictionary.W_dec"):
        small_sae().load_weights_from_checkpoint(tmp_path)


def test_resuming_takes_g_from_the_checkpoint(tmp_path):
    small_sae(gate_scale=1 / 3).save_model(tmp_path)
    sae = small_sae(gate_scale=5.0)
    sae.load_weights_from_checkpoint(tmp_path)
    assert sae.cfg.gate_scale == sae.gate_scale == 1 / 3


def test_an_inference_folder_is_no_training_sae(tmp_path):
    small_sae().save_inference_model(tmp_path)
    with pytest.raises(ValueError, match=r"load them with SAE\.load_from_disk"):
        TrainingSAE.load_from_disk(tmp_path)


def test_files_name_the_package_that_reads_them(tmp_path):
    sae = small_sae()
    for form in ("save_model", "save_inference_model"):
        getattr(sae, form)(tmp_path / form)
        config = json.loads((tmp_path / form / "cfg.json").read_text())
        assert config["architecture"] == "sparsemax"
        assert config["metadata"]["package"] == "sae_lens_sparsemax"


def test_an_offset_that_is_no_parameter_stays_none_after_loading(tmp_path):
    small_sae(b_dec_init="fixed_zeros").save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert not loaded.b_dec.requires_grad and loaded.dictionary.concepts.requires_grad


@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
def test_files_of_version_0_1_with_g_among_the_weights_load(structure, tmp_path):
    sae, x = small_sae(structure=structure, gate_scale=1 / 3), inputs()
    sae.save_model(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    save_file(weights | {"gate_scale": torch.tensor(1 / 3, dtype=torch.float64)}, tmp_path / WEIGHTS)
    resumed = small_sae(structure=structure, seed=1)
    resumed.load_weights_from_checkpoint(tmp_path)
    for loaded in (TrainingSAE.load_from_disk(tmp_path), resumed):
        assert loaded.gate_scale == 1 / 3
        torch.testing.assert_close(loaded.state_dict(), sae.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(SAE.load_from_disk(tmp_path)(x), sae(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", [None, "{", '{"architecture": "topk"}', '{"gate_scale": "wide"}'])
def test_a_checkpoint_without_its_gate_scale_is_refused(text, tmp_path):
    small_sae().save_model(tmp_path)
    (tmp_path / "cfg.json").unlink() if text is None else (tmp_path / "cfg.json").write_text(text)
    with pytest.raises(ValueError, match=r"cfg\.json' is damaged or cannot be read"):
        small_sae().load_weights_from_checkpoint(tmp_path)
