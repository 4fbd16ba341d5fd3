"""Comparisons on vision models: what is stored, what is held out, and zero-shot accuracy."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from sae_lens import SAE

from sae_lens_sparsemax.activations import cache_writer
from sae_lens_sparsemax.compare import compare, config_from_yaml, sources
from sae_lens_sparsemax.compare.config import IMAGE_SET, CompareConfig
from sae_lens_sparsemax.compare.sources import VALIDATION
from sae_lens_sparsemax.compare.vision_source import VisionSource
from sae_lens_sparsemax.data.image_loader import decode_image
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.settings.checking import build
from tests.support.tiny_images import gray_levels
from tests.support.tiny_training import make_files

N_IMAGES, N_TOKENS = 40, 5


@pytest.fixture
def settings(tmp_path):
    make_files(tmp_path, N_IMAGES)
    gray_levels(12).to_parquet(tmp_path / "test.parquet")
    return {
        "output_path": str(tmp_path / "out"),
        "model_name": str(tmp_path / "model"),
        "hook_name": "blocks.-2.hook_resid_post",
        "dataset_path": str(tmp_path / "images.parquet"),
        "eval_datasets": {"test": {"path": str(tmp_path / "test.parquet")}},
        "images": {"batch_size": 7},
        "held_out_fraction": 0.25,
        "n_training_tokens": 150,
        "n_validation_tokens": 50,
        "n_evaluation_tokens": 60,
        "d_sae": 16,
        "steps": 6,
        "batch_size": 16,
        "arms": [{"name": "TopK", "architecture": "topk", "sparsity_field": "k", "sparsities": [2], "lrs": [0.01]}],
    }


def tokens_of(data, rows, model, hook="blocks.1.hook_resid_post", positions=slice(None)):
    """The activations of some images, straight from the model, (image, token, d)."""
    pixels = model.image_processor([decode_image(data[row]["image"]) for row in rows], return_tensors="pt")
    _, cache = model.run_with_cache(pixels["pixel_values"])
    return cache[hook][:, positions]


@pytest.mark.parametrize(
    ("tokens", "positions"), [("all", slice(None)), ("cls", slice(0, 1)), ("patches", slice(1, None))]
)
def test_every_training_image_is_in_one_part_with_the_tokens_asked_for(settings, tmp_path, tokens, positions):
    n_kept = len(range(N_TOKENS)[positions])
    settings["images"]["tokens"] = tokens
    settings |= {"n_training_tokens": 30 * n_kept, "n_validation_tokens": 10 * n_kept, "n_evaluation_tokens": n_kept}
    settings |= {"hook_name": "blocks.0.hook_resid_post"}
    source = VisionSource(build(CompareConfig, settings))
    model = HookedViT.from_pretrained(str(tmp_path / "model"))
    data = gray_levels(N_IMAGES).cast_column("image", gray_levels(1).features["image"].__class__(decode=False))
    with torch.no_grad():
        expected = tokens_of(data, range(N_IMAGES), model, "blocks.0.hook_resid_post", positions).flatten(0, 1)
    stored = torch.cat([*source.train.in_order(64), *source.held_out[VALIDATION].in_order(64)])
    assert len(source.train) == 30 * n_kept and len(source.held_out[VALIDATION]) == 10 * n_kept
    distance = torch.cdist(expected, stored, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(dim=1).values.max() < 1e-4
    assert torch.equal(distance.argmin(dim=1).sort().values, torch.arange(len(stored)))


def test_captures_that_were_interrupted_give_the_same_activations(settings, monkeypatch):
    whole = VisionSource(build(CompareConfig, settings))
    rows = torch.cat(list(whole.train.in_order(64)))
    monkeypatch.setattr(sources, "SHARD_BYTES", 32 * 4 * 40)
    write, calls = cache_writer.write_shard, []

    def fail_at_third(*arguments, **kwargs):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*arguments, **kwargs)

    monkeypatch.setattr(cache_writer, "write_shard", fail_at_third)
    settings["output_path"] += "_again"
    with pytest.raises(KeyboardInterrupt):
        VisionSource(build(CompareConfig, settings))
    monkeypatch.setattr(cache_writer, "write_shard", write)
    assert torch.equal(torch.cat(list(VisionSource(build(CompareConfig, settings)).train.in_order(64))), rows)


def test_a_model_without_a_tokenizer_is_compared_by_reconstruction_alone(settings, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    table = compare(config_from_yaml(path))
    (row,) = csv.DictReader((table.parent / "table.csv").open())
    assert float(row[f"{IMAGE_SET}/l0"]) <= 2 and int(float(row[f"{IMAGE_SET}/n_tokens"])) == 60
    assert f"{IMAGE_SET}/zero_shot_accuracy" not in row
    metadata = SAE.load_from_disk(next(table.parent.glob("runs/*"))).cfg.metadata
    assert (metadata.hook_name, metadata.tokens) == ("blocks.1.hook_resid_post", "all")
    with pytest.raises(ValueError, match="the data gave only 150 of 155 activations"):
        compare(config_from_yaml(path, {"n_training_tokens": 155}))


def test_zero_shot_accuracy_is_that_of_the_model_with_the_reconstruction(settings, tmp_path, shared_data, mini_clip):
    settings |= {"model_name": str(shared_data / "models" / "mini-clip-cifar10"), "n_evaluation_tokens": 17}
    test = shared_data / "images" / "cifar10_test.parquet"
    settings["images"] |= {
        "class_names": None,
        "n_zero_shot_images": 100,
    }
    settings |= {"dataset_path": str(test), "dataset_split": "train[:10]"}
    settings["eval_datasets"] = {"test": {"path": str(test), "split": "train[10:50]"}}
    settings |= {"n_training_tokens": 8 * 17, "n_validation_tokens": 17}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    table = compare(config_from_yaml(path))
    (row,) = csv.DictReader((table.parent / "table.csv").open())
    sae = SAE.load_from_disk(next(table.parent.glob("runs/*")))
    import datasets

    data = datasets.load_dataset("parquet", data_files=str(test), split="train[10:50]")
    pixels = mini_clip.preprocess(list(data["image"]))
    names = data.features["label"].names
    prototypes = torch.nn.functional.normalize(mini_clip.encode_text([f"a photo of a {n}" for n in names]), dim=-1)
    hook = "blocks.2.hook_resid_post"
    for name, hooks in (("", [(hook, lambda acts, hook: sae(acts))]), ("_without_sae", [])):
        with torch.no_grad():
            found = (mini_clip.run_with_hooks(pixels, fwd_hooks=hooks) @ prototypes.T).argmax(-1)
        accuracy = (found == torch.tensor(data["label"])).double().mean().item()
        assert float(row[f"{IMAGE_SET}/zero_shot_accuracy{name}"]) == pytest.approx(accuracy)
    assert (table.parent / "pareto_zero_shot_accuracy.png").exists()
    result = next(table.parent.glob("runs/*/result.json"))
    before = json.loads(result.read_text())
    compare(config_from_yaml(path, {"images.templates": "['{}']"}))
    after = json.loads(result.read_text())
    assert after["chosen_fingerprint"] != before["chosen_fingerprint"]
    assert after["training_seconds"] == before["training_seconds"]  # not trained again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {"tokens": "clss"}}, "images.tokens must be one of all, cls, patches, got 'clss'"),
        ({"images": {"token": "cls"}}, r"images\.token is not a valid key; did you mean images\.tokens\?"),
        ({"eval_datasets": {"test": {"paht": "x"}}}, r"did you mean eval_datasets\.test\.path"),
        ({"eval_datasets": {"a": {"path": "x"}, "b": {"path": "y"}}}, r"eval_datasets must be one set of images, got"),
        ({"images": {"training": {"path": "x"}}}, r"images\.training is now called dataset_path"),
        (
            {"images": {"templates": ["a photo"]}},
            r"images.templates must be texts with one {} each .* got \['a photo'\]",
        ),
        ({"max_norm_over_median": 6}, "max_norm_over_median must be left out beside images, got 6"),
        ({"synthetic_model": {"num_features": 4}}, "synthetic_model must be left out beside images"),
    ],
)
def test_mistakes_are_found_before_anything_runs(settings, change, message):
    settings["images"] |= change.pop("images", {})
    with pytest.raises(ValueError, match=message):
        build(CompareConfig, settings | change)


@pytest.mark.parametrize("given", [{}, {"text_column": "caption"}])
@pytest.mark.parametrize("written", [lambda path: path, lambda path: f"{path.parent}/./{path.name}", os.path.relpath])
def test_training_images_cannot_be_evaluated_on(settings, given, written):
    settings["eval_datasets"]["test"] = {"path": str(written(Path(settings["dataset_path"]))), **given}
    with pytest.raises(ValueError, match=r"eval_datasets\.test must be other images than what is trained on"):
        build(CompareConfig, settings)
