"""Several processes that write one cache: the files of one process, whoever fails and however many go on."""

import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

from sae_lens_sparsemax.activations import cache_writer
from sae_lens_sparsemax.activations.cache_files import read_manifest
from sae_lens_sparsemax.activations.cache_reader import CachedActivations
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.training import cache_runner
from sae_lens_sparsemax.training.cache_runner import cache_activations
from tests.activations.test_cache import SHARD_BYTES as IMAGE_SHARD_BYTES
from tests.activations.test_cache import files, make_cache
from tests.activations.test_text_cache import SHARD_BYTES
from tests.support.ranks import ALL_MEMBERS
from tests.support.started_ranks import StartedRanks
from tests.support.tiny_language_model import documents
from tests.support.tiny_training import make_files
from tests.training.test_text_runner import BATCH, make_config

IMAGES: dict[str, dict[str, Any]] = {"images": {}, "streamed images": {"streaming": True, "training_tokens": 1000}}
TEXTS: dict[str, dict[str, Any]] = {"left out": {"exclude_special_tokens": True, "seqpos_slice": (0, -2)}}
if ALL_MEMBERS:
    IMAGES["all images"] = {"training_tokens": 1000}
    TEXTS |= {"some texts": {}, "all of a stream": {"streaming": True, "training_tokens": 10**6}}


def make_all(folder: Path, model: Path, output: Path) -> None:
    for name, kwargs in IMAGES.items():
        make_cache(folder, output / name, **kwargs)
    for name, kwargs in TEXTS.items():
        cfg = make_config(model, folder / "text.jsonl", output / "out", **{"training_tokens": 12 * BATCH} | kwargs)
        cfg.cached_activations_path = str(output / name)
        cache_activations(cfg, shard_bytes=SHARD_BYTES)


def command(recipe: Path, harm: str = "") -> int:
    """What each process does; when the second one writes its second shard, something happens."""

    def write(*given):
        if dist.is_initialized() and dist.get_rank() == 1 and given[1] > 2:
            if harm == "fails":
                raise ValueError("this must be said once, got it")
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*given)

    before = cache_writer.write_shard
    cache_writer.write_shard = write if harm else before
    cache_runner.cache_activations = functools.partial(cache_activations, shard_bytes=IMAGE_SHARD_BYTES)
    return main(["cache-activations", str(recipe)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    make_files(folder, 100)
    lines = [json.dumps({"text": text}) + "\n" for text in documents(60)]
    (folder / "text.jsonl").write_text("".join(lines))
    return folder


def test_several_processes_make_the_cache_of_one(folder, tiny_model_folder, tmp_path):
    make_all(folder, tiny_model_folder, tmp_path / "one")
    ranks = StartedRanks(2, tmp_path / "log", make_all, folder, tiny_model_folder, tmp_path / "two")
    assert ranks.wait() == [0, 0], ranks.printed()[-3000:]
    for name in (*IMAGES, *TEXTS):
        one, two = files(tmp_path / "one" / name), files(tmp_path / "two" / name)
        assert len(one) > 4
        if name != "left out":
            assert two == one, name
    found = [CachedActivations(tmp_path / each / "left out", 1000).batches() for each in ("one", "two")]
    contexts = [torch.cat([next(batches).acts for _ in range(6)]) for batches in found]
    assert torch.equal(contexts[0][:300], contexts[1][:300])


@pytest.mark.slow
def test_a_process_that_ends_ends_all_with_a_sentence_and_others_go_on_to_the_same_files(folder, tmp_path):
    make_cache(folder, tmp_path / "whole", training_tokens=1000)
    values = {
        "runner": "vision",
        "model_name": str(folder / "model"),
        "hook_name": "blocks.-2.hook_resid_post",
        "dataset_path": str(folder / "images.parquet"),
        "cached_activations_path": str(tmp_path / "cache"),
        "n_decode_workers": 0,
        "store_batch_size_images": 4,
        "train_batch_size_tokens": 16,
        "training_tokens": 1000,
        "sae": {"d_sae": 64, "target_l0": 4},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    for size, harm, sentence, n_whole in (
        (2, "fails", "this must be said once", 2),
        (3, "is killed", "another of the 3 processes of this run has ended", 2),
    ):
        ranks = StartedRanks(size, tmp_path / f"{harm}.log", command, recipe, harm)
        statuses = ranks.wait()
        assert statuses == [-9 if harm == "is killed" and rank == 1 else 2 for rank in range(size)]
        assert ranks.printed().count("sparsemax-sae: error") == ranks.printed().count(sentence) == 1
        assert "Traceback" not in ranks.printed()
        assert len(read_manifest(tmp_path / "cache").shards) == n_whole
    (tmp_path / "cache" / read_manifest(tmp_path / "cache").shards[1].file).write_bytes(b"")
    ranks = StartedRanks(2, tmp_path / "on.log", command, recipe)
    assert ranks.wait() == [0, 0] and ranks.printed().count("activations of 100 images") == 1, ranks.printed()
    assert files(tmp_path / "cache") == files(tmp_path / "whole")
