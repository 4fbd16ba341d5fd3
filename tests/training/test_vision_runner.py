"""Training runs on a tiny vision model: what they leave behind, how they continue, what they refuse."""

import json
import os
import random
import signal
import time
from pathlib import Path

import datasets
import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.training.cache_runner import cache_activations
from sae_lens_sparsemax.training.checkpoints import list_checkpoints
from sae_lens_sparsemax.training.config_file import load_config
from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig
from sae_lens_sparsemax.training.vision_runner import VisionSAETrainingRunner
from tests.support.started_ranks import StartedRanks
from tests.support.tiny_images import gray_levels
from tests.support.tiny_training import ARCHITECTURES, config, make_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    make_files(folder)
    return folder


def weights(sae) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in sae.state_dict().items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_resumed_run_ends_with_the_same_weights(folder, tmp_path, architecture):
    whole = config(folder, architecture, n_checkpoints=2, checkpoint_path=str(tmp_path))
    expected = weights(VisionSAETrainingRunner(whole).run())
    checkpoints = list_checkpoints(tmp_path)
    assert [path.name for path in checkpoints] == ["144", "272"]
    torch.manual_seed(999)
    rest = config(folder, architecture, resume_from_checkpoint=str(checkpoints[0]))
    assert_equal(weights(VisionSAETrainingRunner(rest).run()), expected)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"streaming": True},
        {"prefetch_image_batches": 2},
        {"n_decode_workers": 2},
        {"tokens": "cls", "store_batch_size_images": 8},
        {"activations_mixing_fraction": 0.0},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_every_way_of_feeding_resumes_exactly(folder, tmp_path, kwargs):
    whole = config(folder, n_checkpoints=2, checkpoint_path=str(tmp_path), **kwargs)
    expected = weights(VisionSAETrainingRunner(whole).run())
    rest = config(folder, resume_from_checkpoint=str(list_checkpoints(tmp_path)[1]), **kwargs)
    assert_equal(weights(VisionSAETrainingRunner(rest).run()), expected)


def test_normalised_activations_resume_exactly(folder, tmp_path):
    def normalised(**kwargs):
        cfg = config(folder, "standard", n_batches_for_norm_estimate=3, **kwargs)
        cfg.sae.normalize_activations = "expected_average_only_in"
        return cfg

    expected = weights(VisionSAETrainingRunner(normalised(n_checkpoints=2, checkpoint_path=str(tmp_path))).run())
    rest = normalised(resume_from_checkpoint=str(list_checkpoints(tmp_path)[1]))
    assert_equal(weights(VisionSAETrainingRunner(rest).run()), expected)


def train(cfg) -> None:
    VisionSAETrainingRunner(cfg).run()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "cached"), [(signal.SIGTERM, True)])
def test_killed_at_a_random_moment_the_run_resumes_to_the_same_weights(folder, tmp_path, number, cached):
    cache = str(tmp_path / "cache") if cached else None
    if cache is not None:
        cache_activations(config(folder, cached_activations_path=cache), shard_bytes=8_192)
    common = {"training_tokens": 150 * 16, "cached_activations_path": cache, "output_path": str(tmp_path / "output")}
    saves = {"n_checkpoints": 30, "checkpoint_path": str(tmp_path / "checkpoints")}
    killed = StartedRanks(
        1, tmp_path / "printed", train, config(folder, "sparsemax", n_decode_workers=1, **saves, **common)
    )
    deadline = time.monotonic() + 250
    while len(list_checkpoints(tmp_path / "checkpoints")) < 2:
        assert killed.processes[0].is_alive() and time.monotonic() < deadline, killed.printed()[-2000:]
        time.sleep(0.01)
    time.sleep(random.random() / 5)
    os.kill(killed.processes[0].pid, number)
    assert killed.wait() != [0]
    before = list_checkpoints(tmp_path / "checkpoints")
    assert len(before) < 30, "the run was over before it was killed"

    common["n_decode_workers"] = 0
    resumed = config(folder, "sparsemax", resume_from_checkpoint=str(before[-1]), **common)
    found = weights(VisionSAETrainingRunner(resumed).run())
    del common["output_path"]
    assert_equal(found, weights(VisionSAETrainingRunner(config(folder, "sparsemax", **common)).run()))
    steps = [json.loads(line)["step"] for line in (tmp_path / "output" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(10, 151, 10))


def test_the_output_says_how_to_use_the_sae(folder, tmp_path):
    output = tmp_path / "output"
    cfg = config(folder, "sparsemax", output_path=str(output))
    trained = VisionSAETrainingRunner(cfg).run()
    assert {path.name for path in output.iterdir()} >= {
        "cfg.json", "sae_weights.safetensors", "runner_cfg.json", "metrics.jsonl", "training_curves.png",
    }  # fmt: skip
    sae = SAE.load_from_disk(str(output))
    metadata = sae.cfg.metadata
    assert metadata.hook_name == "blocks.1.hook_resid_post"
    assert (metadata.model_class_name, metadata.tokens, metadata.context_size) == ("HookedViT", "all", 5)
    assert metadata.image_processor["crop_size"] == {"height": 16, "width": 16}
    model = HookedViT.from_pretrained(metadata.model_name)
    pixels = model.preprocess(gray_levels(3)["image"][:])
    _, cache = model.run_with_cache_with_saes(pixels, saes=[sae])
    acts = cache["blocks.1.hook_resid_post.hook_sae_input"]
    torch.testing.assert_close(cache["blocks.1.hook_resid_post.hook_sae_output"], trained(acts), atol=1e-5, rtol=1e-4)
    last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    # Tokens are trained on, images are read: 384 of 5 each, and what the shuffle buffer has not served yet.
    assert last["n_training_samples"] == 384
    assert 384 <= last["details/n_training_images"] * 5 <= 384 + 48 + 20
    assert last["details/n_bad_images"] == 0


@pytest.mark.usefixtures("without_pictures")
def test_the_configuration_survives_json(folder, tmp_path):
    output = tmp_path / "output"
    cfg = config(folder, "batchtopk", output_path=str(output))
    VisionSAETrainingRunner(cfg).run()
    again = VisionSAERunnerConfig.from_dict(json.loads((output / "runner_cfg.json").read_text()))
    assert again.hook_name == "blocks.1.hook_resid_post" and again.sae.d_in == 32
    assert again.logger == cfg.logger
    assert VisionSAERunnerConfig.from_dict(again.to_dict()) == again


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hook_name": "blocks.3.hook_resid_post"}, "no hook 'blocks.3"),
        ({"hook_name": "blocks.0.attn.hook_pattern"}, "one vector per token"),
        ({"hook_name": "blocks.0.attn.hook_z"}, "reshape_activations"),
        ({"image_column": "picture"}, "image_column must be one of .* got 'picture'"),
        ({"dataset_split": "validation"}, "validation"),
        ({"tokens": "first"}, "tokens must be one of"),
        ({"training_tokens": 8}, "at least one batch"),
        ({"dtype": "int7"}, "dtype must be"),
        ({"eval_templates": ["a photo"]}, "eval_templates must be"),
        ({"model_class_name": "HookedTransformer"}, "model_class_name must be"),
        ({"resume_from_checkpoint": "nowhere"}, "no complete checkpoint"),
        ({"activations_mixing_fraction": 1.5}, "1.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_named_before_training(folder, kwargs, message):
    with pytest.raises(ValueError, match=message):
        VisionSAETrainingRunner(config(folder, **kwargs))


def test_a_wrong_width_is_refused(folder):
    cfg = config(folder)
    cfg.sae.d_in = 768
    with pytest.raises(ValueError, match=r"'sae.d_in' is 768, but .* are 32 wide"):
        VisionSAETrainingRunner(cfg)


@pytest.mark.parametrize("written", ["images.parquet", "./images.parquet", "../{folder.name}/images.parquet"])
def test_training_images_are_refused_for_evaluation(folder, written):
    path = f"{folder}/{written.format(folder=folder)}"
    with pytest.raises(ValueError, match="must name other images than those of the training"):
        config(folder, eval_dataset_path=path, eval_dataset_split="train")


@pytest.mark.usefixtures("without_pictures")
def test_broken_images_are_reported_and_nothing_is_lost(folder, tmp_path, caplog):
    images = gray_levels(200).cast_column("image", datasets.Image(decode=False))
    broken = images.map(
        lambda row, i: row | {"image": {"bytes": b"broken", "path": None} if i == 7 else row["image"]},
        with_indices=True,
        features=images.features,
    )
    runner = VisionSAETrainingRunner(config(folder, training_tokens=80 * 16), override_dataset=broken)
    runner.run()
    assert "row 7: this is no image of a known kind" in caplog.text
    assert runner.activations_store.n_bad_inputs >= 1


@pytest.mark.usefixtures("without_pictures")
def test_evaluation_during_training_goes_to_a_file(folder, tmp_path):
    cfg = config(folder, eval_every_n_steps=10, eval_n_images=6, output_path=str(tmp_path))
    VisionSAETrainingRunner(cfg, override_eval_dataset=gray_levels(9)).run()
    lines = [json.loads(line) for line in (tmp_path / "evaluation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 24]
    assert all(line["l0"] <= 4.01 and line["explained_variance"] < 1 for line in lines)


def test_evaluation_does_not_change_the_training(folder):
    plain = weights(VisionSAETrainingRunner(config(folder, "batchtopk")).run())
    cfg = config(folder, "batchtopk", eval_every_n_steps=5, eval_n_images=6)
    evaluated = VisionSAETrainingRunner(cfg, override_eval_dataset=gray_levels(9)).run()
    assert_equal(weights(evaluated), plain)


def test_final_weights_are_those_of_the_final_checkpoint(folder, tmp_path):
    cfg = config(folder, save_final_checkpoint=True, checkpoint_path=str(tmp_path))
    sae = VisionSAETrainingRunner(cfg).run()
    saved = load_file(tmp_path / "final_384" / "sae_weights.safetensors")
    assert torch.equal(saved["W_dec"], sae.W_dec.detach())


@pytest.mark.parametrize("renamed", [("picture", "kind"), ("image", "label")])
@pytest.mark.parametrize("splits", [("train", "test"), ("train",)])
@pytest.mark.usefixtures("without_pictures")
def test_a_recipe_finds_its_way_in_other_images(folder, tmp_path, renamed, splits, caplog):
    image, label = renamed
    for split in splits:
        data = gray_levels(12).rename_columns({"image": image, "label": label} if image != "image" else {})
        data.to_parquet(tmp_path / "data" / f"{split}.parquet")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"runner: vision\nmodel_name: {folder / 'model'}\nhook_name: blocks.-2.hook_resid_post\n"
        "dataset_path: some/where\nimage_column: img\neval_dataset_path: some/where\neval_dataset_split: held\n"
        "training_tokens: 64\ntrain_batch_size_tokens: 16\nn_batches_in_buffer: 3\nn_decode_workers: 0\n"
        "store_batch_size_images: 4\nsae: {architecture: topk, d_sae: 64, k: 4}\n"
    )
    overrides = {"dataset_path": str(tmp_path / "data"), "output_path": str(tmp_path / "out")}
    runner = load_config(recipe, overrides).make_runner()
    assert (runner.cfg.image_column, runner.cfg.dataset_split) == (image, "train")
    if splits == ("train",):
        assert runner.evaluation is None
        assert "has only the split 'train'" in caplog.text
    else:
        assert sum(map(len, runner.evaluation.evaluator.pixels)) == 12


def test_columns_and_splits_that_cannot_be_found_are_refused_with_those_there_are(folder, tmp_path):
    data = gray_levels(4)
    data.select_columns(["label"]).to_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="image_column must be given, as none of 'label' holds images"):
        VisionSAETrainingRunner(config(folder, dataset_path=str(tmp_path / "none.parquet")))
    for split in ("validation", "test"):
        data.to_parquet(tmp_path / "data" / f"{split}.parquet")
    with pytest.raises(ValueError, match="dataset_split must be one of 'validation', 'test'"):
        VisionSAETrainingRunner(config(folder, dataset_path=str(tmp_path / "data")))
