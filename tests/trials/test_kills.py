"""Runs killed at random moments: the same command goes on, and ends with the bits of a run that nobody disturbed.

`TRIAL_KILLS` says how often each is killed.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sae_lens_sparsemax.activations.cache_reader import CachedActivations
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.training.cache_runner import cache_activations
from sae_lens_sparsemax.training.checkpoints import list_checkpoints
from tests.support.fresh_processes import FRESH, print_to
from tests.trials.test_damaged_files import same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
N_KILLS = int(os.environ.get("TRIAL_KILLS", "2"))

COMMON = ["--training_tokens", "6144", "--train_batch_size_tokens", "256", "--n_checkpoints", "6"]
COMMON += ["--sae.d_sae", "64", "--sae.target_l0", "8"]
TEXT = ["quickstart", *COMMON, "--n_batches_in_buffer", "16", "--store_batch_size_prompts", "8"]
VISION = ["vision/quickstart_vision", *COMMON, "--n_batches_in_buffer", "8", "--store_batch_size_images", "16"]
VISION += ["--n_decode_workers", "0", "--eval_every_n_steps", "0"]


def run(words: list[str], log: Path) -> None:
    """What a process of its own does: the command, everything that it prints in the log."""
    print_to(log)
    # Several shards, so that kills come before, between and after them.
    cache_activations.__defaults__ = (None, None, 200_000)
    raise SystemExit(main(words))


def start(words: list[str], log: Path) -> BaseProcess:
    process = FRESH.Process(target=run, args=(words, log))
    process.start()
    return process


def finish(words: list[str], log: Path) -> None:
    process = start(words, log)
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]


def killed_until_done(words: Callable[[], list[str]], folder: Path, seconds: float, draw: random.Random) -> int:
    """Run a command again and again, killing it up to `N_KILLS` times; returns how often that happened in time."""
    log, n_kills = folder.with_suffix(".log"), 0
    for _ in range(4 * N_KILLS):
        if n_kills == N_KILLS:
            break
        process = start(words(), log)
        time.sleep(draw.uniform(0, seconds))
        if not process.is_alive():
            assert process.exitcode == 0, log.read_text()[-3000:]
            shutil.rmtree(folder)  # it was done before the kill: from the start
            continue
        process.kill()
        process.join()
        n_kills += 1
    finish(words(), log)
    assert "Traceback" not in log.read_text()
    return n_kills


@pytest.mark.parametrize("settings", [TEXT, VISION], ids=["text", "vision"])
def test_a_training_that_is_killed_ends_with_the_same_bits(settings, tmp_path):
    train = ["train", *settings, "--output_path", str(tmp_path / "run")]
    finish(train, tmp_path / "warm.log")
    started = time.monotonic()
    finish([*train, "--overwrite"], tmp_path / "whole.log")
    seconds = time.monotonic() - started
    (tmp_path / "run").rename(tmp_path / "whole")

    def words() -> list[str]:
        run = tmp_path / "run"
        if list_checkpoints(run / "checkpoints"):
            return [*train, "--resume"]
        return [*train, *(["--overwrite"] if (run / "sae_weights.safetensors").is_file() else [])]

    n_kills = killed_until_done(words, tmp_path / "run", seconds, random.Random(0))
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        assert same(load_file(tmp_path / "run" / name), load_file(tmp_path / "whole" / name)), name
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / which / "metrics.jsonl").read_text().splitlines()]
        for which in ("run", "whole")
    ]
    assert steps[0] == steps[1]
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.name.endswith((".new", ".old"))]
    print(f"{n_kills} kills within {seconds:.1f} s")


@pytest.mark.parametrize("settings", [TEXT, VISION], ids=["text", "vision"])
def test_a_cache_whose_making_is_killed_holds_the_same_bytes(settings, tmp_path):
    words = lambda folder: ["cache-activations", *settings, "--cached_activations_path", str(folder)]  # noqa: E731
    finish(words(tmp_path / "warm"), tmp_path / "warm.log")
    started = time.monotonic()
    finish(words(tmp_path / "whole"), tmp_path / "whole.log")
    seconds = time.monotonic() - started
    n_kills = killed_until_done(lambda: words(tmp_path / "cache"), tmp_path / "cache", seconds, random.Random(1))
    CachedActivations(tmp_path / "cache", 4)
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / which).iterdir() if path.suffix == ".safetensors"}
        for which in ("cache", "whole")
    ]
    assert len(files[0]) > 2
    assert files[0] == files[1]
    print(f"{n_kills} kills within {seconds:.1f} s")
