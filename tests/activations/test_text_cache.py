"""Activations of text on disk: what a run makes of them, and what is refused; and caches of version 1 of the format."""

import hashlib
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sae_lens_sparsemax.activations.cache_files import damage, read_manifest
from sae_lens_sparsemax.activations.cache_reader import ActivationTable, CachedActivations
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.training.cache_runner import cache_activations
from sae_lens_sparsemax.training.checkpoints import list_checkpoints
from sae_lens_sparsemax.training.text_runner import TextTrainingRunner
from tests.activations.test_cache import make_cache
from tests.support.tiny_language_model import documents
from tests.support.tiny_training import make_files
from tests.training.test_text_runner import BATCH, make_config

pytestmark = pytest.mark.usefixtures("without_pictures")

SHARD_BYTES = 4 * 16 * 16 * 4  # four contexts of sixteen tokens, 16 wide, in float32


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(60)))
    return path


def weights(config) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in TextTrainingRunner(config).run().state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def settings(tiny_model_folder, text_file, tmp_path):
    common = {"checkpoint_path": None, "output_path": None, "lr_warm_up_steps": 0}
    return lambda **kwargs: make_config(tiny_model_folder, text_file, tmp_path / "out", **common | kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"exclude_special_tokens": True, "seqpos_slice": (1, -2)},
        {"prefetch_llm_batches": 2},
        {"held_out_fraction": 0.1, "activations_mixing_fraction": 0.0},
    ],
    ids=str,
)
def test_a_run_on_the_cache_ends_with_the_weights_of_a_run_on_the_model(settings, tmp_path, kwargs):
    cached = settings(cached_activations_path=str(tmp_path / "cache"), training_tokens=20 * BATCH, **kwargs)
    manifest = cache_activations(cached, shard_bytes=SHARD_BYTES)
    assert manifest.complete and len(manifest.shards) > 5
    assert_equal(weights(cached), weights(settings(training_tokens=20 * BATCH, **kwargs)))


def test_a_run_that_reads_more_than_there_is_says_so(settings, tmp_path, caplog):
    cached = partial(settings, cached_activations_path=str(tmp_path / "cache"))
    cache_activations(cached(training_tokens=20 * BATCH), shard_bytes=SHARD_BYTES)
    TextTrainingRunner(cached(training_tokens=20 * BATCH))
    assert "so it reads them" not in caplog.text
    TextTrainingRunner(cached(training_tokens=60 * BATCH))
    assert "so it reads them 2." in caplog.text
    cache_activations(cached(training_tokens=60 * BATCH), shard_bytes=SHARD_BYTES)
    caplog.clear()
    TextTrainingRunner(cached(training_tokens=60 * BATCH))
    assert "so it reads them" not in caplog.text


@pytest.mark.parametrize("prefetch", [False, 2])
def test_a_resumed_run_on_the_cache_ends_with_the_same_weights(settings, tmp_path, prefetch):
    # Three passes over a cache of few contexts.
    common = {"cached_activations_path": str(tmp_path / "cache"), "prefetch_llm_batches": prefetch}
    cache_activations(settings(**common, training_tokens=10 * BATCH), shard_bytes=SHARD_BYTES)
    whole = settings(**common, n_checkpoints=3)
    whole.checkpoint_path = str(tmp_path / "checkpoints")
    expected = weights(whole)
    for checkpoint in list_checkpoints(tmp_path / "checkpoints"):
        torch.manual_seed(1)
        assert_equal(weights(settings(**common, resume_from_checkpoint=str(checkpoint))), expected)


def test_a_checkpoint_continues_with_the_source_it_was_made_with_alone(settings, tmp_path):
    cached = {"cached_activations_path": str(tmp_path / "cache")}
    cache_activations(settings(**cached))
    for made_with, resumed_with, message in (({}, cached, "made without a cache"), (cached, {}, "made with cached")):
        config = settings(**made_with, n_checkpoints=1)
        config.checkpoint_path = str(tmp_path / f"checkpoints-{len(made_with)}")
        TextTrainingRunner(config).run()
        (checkpoint,) = list_checkpoints(config.checkpoint_path)
        with pytest.raises(ValueError, match=message):
            TextTrainingRunner(settings(**resumed_with, resume_from_checkpoint=str(checkpoint))).run()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"context_size": 12}, r"'context_size' \(16 there, 12 here"),
        ({"hook_name": "blocks.0.hook_in"}, "'hook_name'"),
        ({"prepend_bos": False}, "'prepend_bos'"),
        ({"cached_activations_path": "nowhere"}, "cached_activations_path must be a folder with .*, got 'nowhere'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_cache_of_something_else_is_refused_with_the_difference(settings, tmp_path, kwargs, message):
    common = {"cached_activations_path": str(tmp_path / "cache")}
    cache_activations(settings(**common, training_tokens=BATCH))
    with pytest.raises(ValueError, match=message):
        TextTrainingRunner(settings(**common | kwargs))


def test_killed_or_damaged_the_rest_alone_is_made(settings, tmp_path):
    config = settings(cached_activations_path=str(tmp_path / "cache"), training_tokens=10 * BATCH)
    whole = cache_activations(config, shard_bytes=SHARD_BYTES)
    folder = tmp_path / "cache"
    before = {shard.file: (folder / shard.file).stat().st_mtime_ns for shard in whole.shards}
    damaged, last = whole.shards[2].file, whole.shards[-1].file
    (folder / damaged).write_bytes(b"")
    (folder / last).unlink()
    with pytest.raises(ValueError, match=rf"{damaged}' has 0 bytes"):
        ActivationTable(folder, whole.n_tokens)
    assert cache_activations(config, shard_bytes=SHARD_BYTES) == whole
    changed = {name for name, then in before.items() if (folder / name).stat().st_mtime_ns != then}
    assert changed == {damaged, last}


def test_the_command_stores_text_and_says_what_is_next(tiny_model_folder, text_file, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    values = {
        "model_name": str(tiny_model_folder),
        "model_class_name": "TransformerBridge",
        "hook_name": "blocks.0.hook_out",
        "dataset_path": str(text_file),
        "context_size": 16,
        "n_batches_in_buffer": 8,
        "store_batch_size_prompts": 4,
        "train_batch_size_tokens": 32,
        "training_tokens": 320,
        "sae": {"d_sae": 32, "target_l0": 4},
        "output_path": str(tmp_path / "out"),
        "verbose": False,
    }
    config.write_text(yaml.safe_dump(values))
    cached = ["--cached_activations_path", str(tmp_path / "cache"), "--cached_activations_dtype", "float16"]
    assert main(["cache-activations", str(config), *cached]) == 0
    assert "contexts" in (printed := capsys.readouterr().out) and f"sparsemax-sae train {config}" in printed
    assert main(["train", str(config), *cached]) == 0
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["d_in"] == 16


def as_version_1(folder: Path, n_tokens_per_image: int) -> None:
    """Rewrite a cache of images as version 1 of the format had it."""
    manifest = read_manifest(folder)
    shards = []
    for shard in manifest.shards:
        path = folder / shard.file
        acts = load_file(path)["activations"]
        save_file({"activations": acts.unflatten(0, (-1, n_tokens_per_image)).contiguous()}, path)
        values = asdict(replace(shard, n_bytes=path.stat().st_size))
        values["n_images"], values["n_bad_images"] = values.pop("n_inputs"), values.pop("n_bad_inputs")
        del values["n_tokens"], values["n_left_out"]
        shards.append(values | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    values = asdict(manifest) | {"shards": shards, "format_version": 1, "n_tokens_per_image": n_tokens_per_image}
    del values["unit"]
    (folder / "manifest.json").write_text(json.dumps(values))


def test_a_cache_of_version_1_is_read_and_grown(tmp_path):
    make_files(tmp_path, 40)
    folder = tmp_path / "cache"
    make_cache(tmp_path, folder, training_tokens=96)
    expected = list(zip(range(20), CachedActivations(folder, 4).batches(), strict=False))
    as_version_1(folder, 5)
    for number, batch in zip(range(20), CachedActivations(folder, 4).batches(), strict=False):
        assert torch.equal(batch.acts, expected[number][1].acts) and batch.lengths.tolist() == [5] * len(batch.lengths)
    rows = ActivationTable(folder, 100).rows(torch.arange(100))
    grown = make_cache(tmp_path, folder, training_tokens=1000)
    assert grown.n_inputs == 40 and all(damage(folder, shard) is None for shard in grown.shards)
    assert torch.equal(ActivationTable(folder, 200).rows(torch.arange(100)), rows)
