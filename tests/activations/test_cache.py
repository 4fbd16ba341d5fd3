"""Activations on disk: what is stored, what a run makes of it, and what happens when something is wrong."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import datasets
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from sae_lens_sparsemax.activations.cache_files import read_manifest
from sae_lens_sparsemax.activations.cache_identity import dataset_fingerprint, weights_sha256
from sae_lens_sparsemax.activations.cache_reader import CachedActivations
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.data.images import encoded_images
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.training.cache_runner import cache_activations
from sae_lens_sparsemax.training.checkpoints import list_checkpoints
from sae_lens_sparsemax.training.vision_runner import VisionSAETrainingRunner
from tests.support.started_ranks import StartedRanks
from tests.support.tiny_images import gray_levels
from tests.support.tiny_training import config, make_files

pytestmark = pytest.mark.usefixtures("without_pictures")

SHARD_BYTES = 8 * 5 * 32 * 4  # eight images of five tokens, 32 wide, in float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    make_files(folder, 100)
    return folder


def make_cache(folder: Path, path: Path, dataset=None, **kwargs):
    cfg = config(folder, cached_activations_path=str(path), **kwargs)
    return cache_activations(cfg, override_dataset=dataset, shard_bytes=SHARD_BYTES)


@pytest.fixture(scope="module")
def whole_cache(folder) -> Path:
    """All 100 images: twelve shards of eight and one of four."""
    make_cache(folder, folder / "cache", training_tokens=1000)
    return folder / "cache"


@pytest.fixture
def cache(whole_cache, tmp_path) -> Path:
    """A copy, to be harmed."""
    shutil.copytree(whole_cache, tmp_path / "cache")
    return tmp_path / "cache"


def weights(runner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in runner.run().state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_a_run_on_the_cache_ends_with_the_weights_of_a_run_on_the_model(folder, tmp_path):
    manifest = make_cache(folder, tmp_path / "cache")
    assert manifest.n_inputs < 100, "a second pass would be in another order"
    found = weights(VisionSAETrainingRunner(config(folder, cached_activations_path=str(tmp_path / "cache"))))
    assert_equal(found, weights(VisionSAETrainingRunner(config(folder))))


def test_each_pass_shows_every_image_once_in_a_new_order(cache):
    def passes(seed):
        batches = itertools.islice(CachedActivations(cache, 4, seed=seed).batches(), 75)
        images = torch.cat([batch.acts.view(-1, 5, 32)[:, 0, 0] for batch in batches])
        assert len(images) == 300
        return images.split(100)

    first, second, third = passes(0)
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    assert torch.equal(passes(1)[0], first) and not torch.equal(passes(1)[1], second)


@pytest.mark.parametrize("n_parts", [4, 13])
def test_parts_of_a_cache_are_disjoint_and_everything_in_every_pass(cache, n_parts):
    """Of its 13 shards, thirteen processes read one each, and four some images of each."""
    parts, files_read = [], []
    for part in range(n_parts):
        source = CachedActivations(cache, 4, share=(part, n_parts))
        n_inputs = source._n_inputs
        files_read.append(len(source._shares))
        images = []
        for batch in source.batches():
            images += batch.acts.view(-1, 5, 32)[:, 0, 0].tolist()
            if len(images) >= 2 * n_inputs:
                break
        assert sorted(images[:n_inputs]) == sorted(images[n_inputs : 2 * n_inputs])
        parts += images[:n_inputs]
    everything = next(CachedActivations(cache, 100).batches()).acts[::5, 0]
    assert len(parts) == len(set(parts)) == 100 and set(everything.tolist()) <= set(parts)
    assert files_read == ([1] * 13 if n_parts == 13 else [13] * 4)


@pytest.mark.parametrize("stop_after", [1, 24, 25, 40])
def test_reading_continues_at_every_position(cache, stop_after):
    source = CachedActivations(cache, 4)
    batches = list(itertools.islice(source.batches(), 60))
    rest = list(itertools.islice(source.batches(batches[stop_after - 1].position), 60 - stop_after))
    assert all(torch.equal(a.acts, b.acts) for a, b in zip(rest, batches[stop_after:], strict=True))


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        pytest.param({"prefetch_image_batches": 2}, marks=pytest.mark.slow),
        pytest.param({"dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_resumed_run_on_the_cache_ends_with_the_same_weights(folder, cache, tmp_path, kwargs):
    # 2,000 tokens are four passes over the cache.
    common = {"cached_activations_path": str(cache), "training_tokens": 2000, **kwargs}
    whole = config(folder, n_checkpoints=4, checkpoint_path=str(tmp_path / "checkpoints"), **common)
    expected = weights(VisionSAETrainingRunner(whole))
    for checkpoint in list_checkpoints(tmp_path / "checkpoints")[::3]:
        rest = config(folder, resume_from_checkpoint=str(checkpoint), **common)
        assert_equal(weights(VisionSAETrainingRunner(rest)), expected)


def test_a_checkpoint_continues_with_the_source_it_was_made_with_alone(folder, cache, tmp_path):
    make_cache(folder, tmp_path / "other", training_tokens=1000, seed=1)
    common = {"n_checkpoints": 1, "save_final_checkpoint": False}
    for source in (None, str(cache)):
        path = tmp_path / f"checkpoints-{source is None}"
        cfg = config(folder, checkpoint_path=str(path), cached_activations_path=source, **common)
        VisionSAETrainingRunner(cfg).run()
        for other in {None, str(cache), str(tmp_path / "other")} - {source}:
            resumed = config(
                folder, resume_from_checkpoint=str(list_checkpoints(path)[0]), cached_activations_path=other
            )
            with pytest.raises(ValueError, match="with another cache|without a cache|was made with cached"):
                VisionSAETrainingRunner(resumed).run()


def cache_alone(folder: Path, path: Path) -> None:
    make_cache(folder, path, training_tokens=1000)


@pytest.mark.slow
def test_killed_at_a_random_moment_caching_goes_on_to_the_same_files(folder, cache, tmp_path):
    path = tmp_path / "killed"
    killed = StartedRanks(1, tmp_path / "printed", cache_alone, folder, path)
    deadline = time.monotonic() + 250
    while len(list(path.glob("activations-*"))) < 2:
        assert killed.processes[0].is_alive() and time.monotonic() < deadline, killed.printed()[-2000:]
        time.sleep(0.001)
    time.sleep(random.random() / 50)
    os.kill(killed.processes[0].pid, signal.SIGKILL)
    assert killed.wait() != [0]
    finished = [path / shard.file for shard in read_manifest(path).shards]
    assert 1 <= len(finished) < 13, "caching was over before it was killed"
    written = [file.stat().st_mtime_ns for file in finished]
    with pytest.raises(ValueError, match="must be finished"):
        CachedActivations(path, 4)
    make_cache(folder, path, training_tokens=1000)
    assert [file.stat().st_mtime_ns for file in finished] == written
    assert files(path) == files(cache)


def test_more_images_are_added_to_what_is_there(folder, cache, tmp_path):
    path = tmp_path / "grown"
    # 96 tokens and 48 in the buffer are in 29 images; one more batch, and what fills the last batch.
    assert make_cache(folder, path, training_tokens=96).n_inputs == 36
    make_cache(folder, path, training_tokens=1000)
    grown, whole = (
        torch.cat([load_file(folder / shard.file)["activations"] for shard in read_manifest(folder).shards])
        for folder in (path, cache)
    )
    assert torch.equal(grown, whole)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-100] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "message"),
    [(truncate, "bytes where"), (flip, "SHA-256"), (Path.unlink, "is missing")],
    ids=["truncated", "flipped", "missing"],
)
def test_a_damaged_shard_is_named_and_made_again(folder, cache, harm, message):
    whole = files(cache)
    times = {file.name: file.stat().st_mtime_ns for file in cache.glob("activations-*")}
    harm(cache / "activations-00003.safetensors")
    cfg = config(folder, cached_activations_path=str(cache), training_tokens=2000)
    with pytest.raises(ValueError, match=rf"activations-00003\.safetensors' .*{message}"):
        VisionSAETrainingRunner(cfg).run()
    make_cache(folder, cache, training_tokens=1000)
    assert files(cache) == whole
    changed = {name for name, then in times.items() if (cache / name).stat().st_mtime_ns != then}
    assert changed == {"activations-00003.safetensors"}


def flip(values):
    values["shards"][1]["n_tokens"] += 1


def repeat(values):
    values["shards"][1] = values["shards"][0]


def reorder(values):
    values["shards"].reverse()


def leave_the_folder(values):
    values["shards"][0]["file"] = "../cache/" + values["shards"][0]["file"]


def drop(values):
    del values["shards"][0]


def retype(values):
    values["shards"][2]["n_bytes"] = "many"


def unknown(values):
    values["shards"][2]["other"] = 1


STRANGE = [repeat, reorder, leave_the_folder, drop, retype, unknown]


@pytest.mark.parametrize(("harm", "version"), [(flip, 3), *((harm, version) for harm in STRANGE for version in (2, 3))])
def test_a_manifest_that_says_something_else_is_refused(cache, harm, version):
    path = cache / "manifest.json"
    values = json.loads(path.read_text())
    harm(values)
    if version == 2:  # has no checksum of itself
        del values["sha256"]
        values["format_version"] = 2
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"manifest\.json' is damaged or cannot be read: (it has changed|shards)"):
        CachedActivations(cache, 4)


def test_a_damaged_manifest_is_named(cache):
    truncate(cache / "manifest.json")
    with pytest.raises(ValueError, match=r"manifest\.json' is damaged"):
        CachedActivations(cache, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hook_name": "blocks.0.hook_resid_post"}, r"'hook_name' \('blocks.1.* there, 'blocks.0"),
        ({"tokens": "patches"}, r"'tokens' \('all' there, 'patches' here"),
        ({"model_dtype": "bfloat16"}, r"the model's weights .*; 'model_dtype' \('float32' there, 'bfloat16' here"),
        ({"dataset_path": "elsewhere"}, "'dataset_path'"),
        ({"cached_activations_path": "nowhere"}, "cached_activations_path must be a folder with .*, got 'nowhere'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_cache_of_something_else_is_refused_with_the_difference(folder, cache, kwargs, message):
    with pytest.raises(ValueError, match=message):
        VisionSAETrainingRunner(config(folder, **{"cached_activations_path": str(cache)} | kwargs))


def test_other_weights_and_other_preprocessing_are_refused(folder, cache):
    cfg = config(folder, cached_activations_path=str(cache))
    model = HookedViT.from_pretrained(cfg.model_name)
    sharper = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16, image_mean=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"different are the preprocessing \(image_mean: \[0\.48"):
        VisionSAETrainingRunner(cfg, override_model=HookedViT(model.model, sharper))
    with torch.no_grad():
        model.model.vision_model.encoder.layers[0].mlp.fc1.bias[0] += 1e-3
    with pytest.raises(ValueError, match=r"different are the model's weights \([0-9a-f]{12} there"):
        VisionSAETrainingRunner(cfg, override_model=model)


def test_the_same_model_in_another_folder_is_welcome(folder, cache, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "moved")
    cfg = config(folder, cached_activations_path=str(cache), model_name=str(tmp_path / "moved"))
    VisionSAETrainingRunner(cfg).run()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"seed": 7}, "'seed'"),
        ({"cached_activations_dtype": "float16"}, "'cached_activations_dtype'"),
        ({"store_batch_size_images": 8}, "'store_batch_size_images'"),
        ({"dataset": gray_levels(101)}, "the data"),
        ({"cached_activations_path": None}, "must name the folder"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_cache_is_not_continued_with_something_else(folder, cache, kwargs, message):
    dataset = kwargs.get("dataset")
    cfg = config(
        folder, **{"cached_activations_path": str(cache)} | {k: v for k, v in kwargs.items() if k != "dataset"}
    )
    before = files(cache)
    with pytest.raises(ValueError, match=message):
        cache_activations(cfg, override_dataset=dataset, shard_bytes=SHARD_BYTES)
    assert files(cache) == before


def test_a_full_disk_is_noticed_before_anything_is_computed(folder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100_000, 40_000, 60_000))
    with pytest.raises(ValueError, match=r"need 6.4e-05 GB more in .* where 6e-05 GB are free"):
        make_cache(folder, tmp_path / "deep" / "cache", training_tokens=1000)
    assert not (tmp_path / "deep").exists()
    manifest = make_cache(folder, tmp_path / "cache", training_tokens=1000, cached_activations_dtype="float16")
    assert manifest.n_inputs == 100


def test_activations_beyond_the_stored_type_are_refused(folder, tmp_path):
    cfg = config(folder, cached_activations_path=str(tmp_path), cached_activations_dtype="float16")
    model = HookedViT.from_pretrained(cfg.model_name)
    with torch.no_grad():
        model.tower.embeddings.position_embedding.weight[0, 0] = 1e4
        model.tower.pre_layrnorm.weight *= 1e5
    with pytest.raises(ValueError, match="must be finite as float16"):
        cache_activations(cfg, override_model=model)


def test_broken_images_are_left_out_counted_and_reported(folder, tmp_path, caplog):
    images = gray_levels(200).cast_column("image", datasets.Image(decode=False))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(42 * 1_000_003)).tolist()
    broken = set(order[4:8]) | {order[30]}  # one batch without any usable image, and one more
    harmed = images.map(
        lambda row, i: row | {"image": {"bytes": b"broken", "path": None} if i in broken else row["image"]},
        with_indices=True,
        features=images.features,
    )
    cfg = {"training_tokens": 2000, "max_bad_image_fraction": 0.1, "n_batches_in_buffer": 1}
    manifest = make_cache(folder, tmp_path / "cache", dataset=harmed, **cfg)
    assert (manifest.n_inputs, manifest.n_bad_inputs) == (195, 5)
    assert manifest.first_errors[0].startswith(f"row {order[4]}: this is no image of a known kind")
    runner = VisionSAETrainingRunner(config(folder, cached_activations_path=str(tmp_path / "cache"), **cfg))
    runner.run()
    assert runner.activations_store.n_bad_inputs >= 5
    assert f"row {order[4]}: this is no image of a known kind" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_streams_and_tables_are_stored_once(folder, tmp_path, streaming):
    manifest = make_cache(folder, tmp_path / "cache", streaming=streaming, training_tokens=10_000)
    assert manifest.n_inputs == 100 and manifest.complete
    again = make_cache(folder, tmp_path / "cache", streaming=streaming, training_tokens=10_000)
    assert again == manifest


def test_fingerprints_tell_data_and_weights_apart(folder):
    prints = {
        dataset_fingerprint(encoded_images(data, "image"), "image")
        for data in (gray_levels(50), gray_levels(51), gray_levels(50, size=8), gray_levels(50).to_iterable_dataset())
    }
    assert len(prints) == 4
    same = encoded_images(gray_levels(50), "image")
    assert dataset_fingerprint(same, "image") in prints
    layers = [torch.nn.Linear(3, 3) for _ in range(2)]
    assert weights_sha256(layers[0]) != weights_sha256(layers[1])
    layers[1].load_state_dict(layers[0].state_dict())
    assert weights_sha256(layers[0]) == weights_sha256(layers[1]) != weights_sha256(layers[1].half())


def test_the_command_stores_and_says_what_is_next(folder, tmp_path, capsys):
    values = {
        "runner": "vision",
        "model_name": str(folder / "model"),
        "hook_name": "blocks.-2.hook_resid_post",
        "dataset_path": str(folder / "images.parquet"),
        "training_tokens": 320,
        "train_batch_size_tokens": 16,
        "n_decode_workers": 0,
        "sae": {"d_sae": 32, "target_l0": 4},
        "output_path": str(tmp_path / "out"),
        "verbose": False,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    cached = ["--cached_activations_path", str(tmp_path / "cache")]
    assert main(["cache-activations", str(path), *cached]) == 0
    printed = capsys.readouterr().out
    assert "100 images" in printed and f"sparsemax-sae train {path} --cached_activations_path" in printed
    assert main(["train", str(path), *cached]) == 0
    runner_cfg = json.loads((tmp_path / "out" / "runner_cfg.json").read_text())
    assert runner_cfg["cached_activations_path"] == str(tmp_path / "cache")
    assert main(["cache-activations", str(path)]) == 2
    assert "cached_activations_path must name" in capsys.readouterr().err
    path.write_text(yaml.safe_dump({"runner": "synthetic", "sae": {"d_sae": 32}}))
    assert main(["cache-activations", str(path), *cached]) == 2
