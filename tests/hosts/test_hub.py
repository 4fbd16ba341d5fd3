"""SAEs to and from a model hub, here one on the loopback address."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from sae_lens import SAE, TopKSAE, TopKSAEConfig, TrainingSAE, upload_saes_to_huggingface

from sae_lens_sparsemax import SparsemaxSAE, SparsemaxSAEConfig
from sae_lens_sparsemax.explore.labels import Label, labels_of
from sae_lens_sparsemax.hub import model_card, upload_saes
from tests.support.host_training import HOOK, new_config, trainer_of


def assert_equal_outputs(one, other, x):
    with torch.no_grad():
        assert torch.equal(one.encode(x), other.encode(x))
        assert torch.equal(one(x), other(x))


def test_uploaded_saes_load_with_equal_outputs(hub, trained, inference_folder, activations, tmp_path):
    trained.save_model(tmp_path / "checkpoint")
    card = upload_saes(
        {"trained": trained, "layers/2": inference_folder, "checkpoint": str(tmp_path / "checkpoint")}, "user/saes"
    )
    expected = SAE.load_from_disk(inference_folder)
    for sae_id in ("trained", "layers/2", "checkpoint"):
        loaded = SAE.from_pretrained("user/saes", sae_id)
        assert type(loaded) is SparsemaxSAE
        assert loaded.cfg.gate_scale == trained.cfg.gate_scale
        assert_equal_outputs(loaded, expected, activations[:300])
    files = hub.repos["user/saes"]
    assert files["README.md"].decode() == card
    assert set(files) == {"README.md"} | {
        f"{sae_id}/{name}"
        for sae_id in ("trained", "layers/2", "checkpoint")
        for name in ("cfg.json", "sae_weights.safetensors")
    }


def test_a_folded_sae_object_uploads_too(hub, inference_folder, activations):
    sae = SAE.load_from_disk(inference_folder)
    upload_saes({"one": sae}, "user/one")
    assert_equal_outputs(SAE.from_pretrained("user/one", "one"), sae, activations[:100])


def test_saelens_own_upload_of_a_training_sae_still_loads(hub, trained, inference_folder, activations):
    upload_saes_to_huggingface({"raw": trained}, "user/raw", show_progress=False)
    loaded = SAE.from_pretrained("user/raw", "raw")
    assert type(loaded) is SparsemaxSAE
    assert_equal_outputs(loaded, SAE.load_from_disk(inference_folder), activations[:300])
    assert type(TrainingSAE.from_pretrained("user/raw", "raw")) is type(trained)


def test_a_card_that_is_there_stays_unless_asked(hub, trained):
    hub.repos["user/saes"] = {"README.md": b"mine"}
    upload_saes({"one": trained}, "user/saes")
    assert hub.repos["user/saes"]["README.md"] == b"mine"
    card = upload_saes({"one": trained}, "user/saes", replace_card=True)
    assert hub.repos["user/saes"]["README.md"].decode() == card


def test_a_cached_sae_loads_without_a_download_and_force_download_fetches_it_again(hub, trained):
    upload_saes({"one": trained}, "user/saes")
    SAE.from_pretrained("user/saes", "one")

    def downloads(**settings) -> int:
        hub.requests.clear()
        SAE.from_pretrained("user/saes", "one", **settings)
        return sum(method == "GET" and path.endswith(".safetensors") for method, path in hub.requests)

    assert downloads() == 0
    assert downloads(force_download=True) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_loading_from_a_hub_in_another_dtype_keeps_g(hub, trained, dtype):
    upload_saes({"one": trained}, "user/saes")
    sae = SAE.from_pretrained("user/saes", "one", dtype=dtype)
    assert str(sae.W_dec.dtype) == f"torch.{dtype}"
    assert sae.cfg.gate_scale == trained.cfg.gate_scale


def test_a_missing_sae_or_weight_file_is_an_error_that_names_the_file(hub, trained):
    upload_saes({"one": trained}, "user/saes")
    with pytest.raises(EntryNotFoundError, match=r"two/cfg\.json"):
        SAE.from_pretrained("user/saes", "two")
    del hub.repos["user/saes"]["one/sae_weights.safetensors"]
    with pytest.raises(EntryNotFoundError, match=r"one/sae_weights.safetensors"):
        SAE.from_pretrained("user/saes", "one", force_download=True)


def test_what_lies_beside_an_sae_goes_along(hub, inference_folder):
    from safetensors.torch import save_file

    assert labels_of("user/saes:one") == {}
    (inference_folder / "labels.csv").write_text("concept,label\n3,mine\n")
    proposed = {"model": "llm", "concepts": {"3": {"label": "a", "score": 0.5}, "4": {"label": "b", "score": None}}}
    (inference_folder / "explanations.json").write_text(json.dumps(proposed))

    save_file({"sparsity": torch.full((512,), -2.0)}, inference_folder / "sparsity.safetensors")
    (inference_folder / "runner_cfg.json").write_text("{}")
    upload_saes({"one": inference_folder}, "user/saes")
    _, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity("user/saes", "one")
    assert sparsity is not None and sparsity.shape == (512,)
    assert hub.repos["user/saes"]["one/runner_cfg.json"] == b"{}"
    found = labels_of("user/saes:one")
    assert found == labels_of(inference_folder) == {3: Label("mine", "person"), 4: Label("b", "llm")}
    (inference_folder / "labels.csv").write_text("wrong")
    with pytest.raises(ValueError, match="its first line must be concept,label"):
        upload_saes({"two": inference_folder}, "user/saes")


def test_a_checkpoint_with_its_normalisation_still_to_fold_is_published_folded(hub, activations, tmp_path):
    config = new_config(normalize_activations="expected_average_only_in", unit_norm_query=False)
    trainer = trainer_of(config, activations, 6, n_checkpoints=1, checkpoint_path=str(tmp_path))
    trainer.fit()
    (checkpoint,) = tmp_path.iterdir()
    upload_saes({"half-way": checkpoint}, "user/saes")
    published = SAE.from_pretrained("user/saes", "half-way")
    assert published.cfg.normalize_activations == "none"
    raw = SAE.load_from_disk(checkpoint)
    scale = activations.shape[1] ** 0.5 / torch.cat([activations[: 8 * 256]]).norm(dim=-1).mean()
    with torch.no_grad():
        expected = raw(activations[:200] * scale) / scale
        torch.testing.assert_close(published(activations[:200]), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="still expects activations normalised by 'expected_average_only_in'"):
        upload_saes({"half-way": raw}, "user/saes")


@pytest.mark.parametrize(
    ("saes", "repo_id", "message"),
    [
        ({}, "user/saes", "saes must be at least one SAE"),
        ({"a": "nowhere"}, "user/saes", "there is no cfg.json in nowhere"),
        ({"a": "nowhere"}, "saes", "repo_id must be of the form 'user/name', got 'saes'"),
        ({"../a": "nowhere"}, "user/saes", r"an SAE's id must be a folder.*got '\.\./a'"),
        ({"": "nowhere"}, "user/saes", "got ''"),
        *[
            ({sae_id: SparsemaxSAE(SparsemaxSAEConfig(d_in=4, d_sae=8))}, "user/saes", f"id must be.*got {sae_id!r}")
            for sae_id in ("a/", "./a", "a/./b", "a//b", "/a", ".", "a:b", 6, None)
        ],
        ({"a": "nowhere"}, None, "repo_id must be of the form 'user/name', got None"),
        *[
            ({"a": source}, "user/saes", f"'a' must be a sparsemax SAE or the folder of one, got a {kind}")
            for source, kind in (
                (TopKSAE(TopKSAEConfig(d_in=4, d_sae=8, k=2)), "TopKSAE"),
                (5, "int"),
                (None, "NoneType"),
            )
        ],
    ],
)
def test_what_cannot_be_published_is_refused_before_anything_is_sent(saes, repo_id, message, hub):
    with pytest.raises(ValueError, match=message):
        upload_saes(saes, repo_id)
    assert hub.requests == []


def test_a_folder_of_another_architecture_is_refused(hub, tmp_path):
    TopKSAE(TopKSAEConfig(d_in=4, d_sae=8, k=2)).save_model(tmp_path)
    with pytest.raises(ValueError, match=r"'a' in .* is a TopKSAE, not a sparsemax SAE"):
        upload_saes({"a": tmp_path}, "user/saes")


def test_the_card_begins_with_the_import_and_tells_what_each_sae_is(trained):
    card = model_card("user/saes", {"layer_2": trained, "again": trained})
    _, front_matter, body = card.split("---\n", 2)
    assert "library_name: saelens" in front_matter and "license" not in front_matter
    assert body.strip().startswith("```python\nimport sae_lens_sparsemax")
    assert 'SAE.from_pretrained("user/saes", "layer_2")' in body
    (row,) = [line for line in body.splitlines() if line.startswith("| layer_2 | quickstart")]
    for value in (HOOK, "128", "512", "scores", f"{trained.cfg.gate_scale:.6g}", f"{trained.cfg.metadata.l0:.1f}"):
        assert f"| {value} |" in row
    cfg = trained.cfg
    assert f"| {cfg.passes} | {cfg.refinements} | {cfg.activation_floor:g} | {cfg.metadata.l0:.1f} |" in row
    assert f"| {cfg.alpha:g} | {cfg.gate_scale:.6g} |" in row
    assert "| layer_2 | not recorded | 64 | cross_attention | no | 12.0 |" in body


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ({"structure": "cross_attention", "encoder_bias": True}, "cross_attention | yes"),
        ({"structure": "cross_attention"}, "cross_attention | no"),  # written before there was such a field
        ({"structure": "mlp", "encoder_bias": False}, "mlp | yes"),
        ({}, "not recorded | not recorded"),
    ],
)
def test_the_card_says_whether_scores_have_a_bias(details, said):
    sae = SparsemaxSAE(SparsemaxSAEConfig(d_in=4, d_sae=8))
    sae.cfg.metadata.training_architecture_details = details
    assert f"| one | not recorded | not recorded | {said} |" in model_card("user/saes", {"one": sae})


def test_the_card_of_an_sae_without_metadata_says_so():
    bare = SparsemaxSAE(SparsemaxSAEConfig(d_in=4, d_sae=8))
    assert "| bare | not recorded | not recorded | 4 | 8 |" in model_card("user/saes", {"bare": bare})
    bare.cfg.metadata.model_name = "a|b\nc"
    assert "| bare | a\\|b c |" in model_card("user/saes", {"bare": bare})
    with pytest.raises(ValueError, match="at least one SAE"):
        model_card("user/saes", {})


@pytest.mark.slow
def test_a_fresh_interpreter_loads_from_the_hub_that_the_environment_names(hub, trained, tmp_path):
    upload_saes({"one": trained}, "user/saes")
    load = 'SAE.from_pretrained("user/saes", "one")'
    code = f"import sae_lens_sparsemax; from sae_lens import SAE; print({load}.cfg.gate_scale)"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout.strip().splitlines()[-1]) == trained.cfg.gate_scale
