"""What the import does for SAELens's loaders and registries, and what it leaves alone."""

import importlib
import json
import sys

import pytest
import sae_lens.registry
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY, get_sae_class, get_sae_training_class

import sae_lens_sparsemax
from sae_lens_sparsemax import SparsemaxSAE, SparsemaxSAEConfig, SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig


def test_the_import_registers_both_classes():
    assert get_sae_class("sparsemax") == (SparsemaxSAE, SparsemaxSAEConfig)
    assert get_sae_training_class("sparsemax") == (SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig)


def test_importing_again_and_reloading_is_harmless():
    before = SAE_CLASS_REGISTRY["sparsemax"], SAE_TRAINING_CLASS_REGISTRY["sparsemax"]
    importlib.import_module("sae_lens_sparsemax")
    importlib.reload(sae_lens_sparsemax)
    assert (SAE_CLASS_REGISTRY["sparsemax"], SAE_TRAINING_CLASS_REGISTRY["sparsemax"]) == before


def test_another_packages_sparsemax_is_not_silently_kept(monkeypatch):
    class Other(SparsemaxSAE):
        pass

    monkeypatch.setitem(SAE_CLASS_REGISTRY, "sparsemax", (Other, SparsemaxSAEConfig))
    with pytest.raises(ValueError, match="sparsemax already registered"):
        importlib.reload(sae_lens_sparsemax)


def test_what_is_public_exists_and_stays_small():
    assert len(sae_lens_sparsemax.__all__) <= 12
    for name in sae_lens_sparsemax.__all__:
        assert getattr(sae_lens_sparsemax, name) is not None


def test_without_the_import_the_metadata_names_the_package_to_import(inference_folder, monkeypatch):
    """SAELens's own error is a bare KeyError, so the file has to say it."""
    monkeypatch.delitem(SAE_CLASS_REGISTRY, "sparsemax")
    with pytest.raises(KeyError, match="^'sparsemax'$"):
        SAE.load_from_disk(inference_folder)
    assert json.loads((inference_folder / "cfg.json").read_text())["metadata"]["package"] == "sae_lens_sparsemax"


def test_the_import_loads_no_plots_no_images_no_command_line_and_the_vision_model_when_asked_for(monkeypatch):
    """Imported once more from its files, where importing any of these would fail."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "sae_lens_sparsemax"]:
        monkeypatch.delitem(sys.modules, name)
    for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY):
        monkeypatch.delitem(registry, "sparsemax")
    with monkeypatch.context() as barred:
        for name in ("matplotlib", "torchvision", "transformers", "datasets", "wandb", "PIL", "yaml", "triton"):
            barred.setitem(sys.modules, name, None)
        again = importlib.import_module("sae_lens_sparsemax")
        assert again is not sae_lens_sparsemax
        names = [name.split(".") for name in sys.modules if name.startswith("sae_lens_sparsemax.")]
        assert ["sae_lens_sparsemax", "sae", "inference"] in names
        assert {name[1] for name in names} == {"attention", "sae", "files"}
    assert again.HookedViT.__module__ == "sae_lens_sparsemax.models.hooked_vit"
    assert SAE_CLASS_REGISTRY["sparsemax"][0] is again.SparsemaxSAE


def test_what_is_not_there_is_not_made_up():
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchThing'"):
        _ = sae_lens_sparsemax.NoSuchThing


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inference_folder_and_checkpoint_of_a_trained_sae_load_alike(
    dtype, trained, inference_folder, activations, tmp_path
):
    trained.save_model(tmp_path / "checkpoint")
    folded = SAE.load_from_disk(inference_folder, dtype=dtype)
    checkpoint = SAE.load_from_disk(tmp_path / "checkpoint", dtype=dtype)
    x = activations[:300].to(folded.dtype)
    with torch.no_grad():
        if dtype == "float32":
            assert torch.equal(folded.encode(x), checkpoint.encode(x))
            assert torch.equal(folded(x), checkpoint(x))
        else:  # the checkpoint's projections are rounded before they are multiplied
            error, scale = (folded(x) - checkpoint(x)).float().norm(), folded(x).float().norm()
            assert error / scale < 0.2
    resumed = TrainingSAE.load_from_disk(tmp_path / "checkpoint")
    assert type(resumed) is SparsemaxTrainingSAE
    for name, value in trained.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_loaded_sae_explains_itself_in_the_metadata(trained, inference_folder):
    metadata = SAE.load_from_disk(inference_folder).cfg.metadata
    assert metadata.training_architecture == "sparsemax"
    assert metadata.training_architecture_details["target_l0"] == 12.0
    assert metadata.l0 == pytest.approx(trained.cfg.metadata.l0)


def test_config_dictionaries_build_saes_without_naming_the_class():
    config = SparsemaxTrainingSAEConfig(d_in=4, d_sae=40, target_l0=None)
    assert type(TrainingSAE.from_dict(config.to_dict())) is SparsemaxTrainingSAE
    assert type(SAE.from_dict(config.get_inference_sae_cfg_dict())) is SparsemaxSAE
    assert sae_lens.registry.SAE_CLASS_REGISTRY is SAE_CLASS_REGISTRY
