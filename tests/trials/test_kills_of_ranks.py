"""Runs over several ranks of which one, or all, are killed at random moments: the same command goes on.

`TRIAL_KILLS` says how often each run is killed. It saves after every other step, so kills often come while it does.
"""

import os
import random
import shutil
import time

import pytest

from sae_lens_sparsemax.files import verify_checksums
from sae_lens_sparsemax.training.checkpoints import list_checkpoints
from tests.support.started_ranks import StartedRanks
from tests.training.test_ranks import STEPS, assert_same, finished, train, words

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
N_KILLS = int(os.environ.get("TRIAL_KILLS", "2"))


@pytest.mark.parametrize("which", ["one", "all"])
def test_a_run_whose_ranks_are_killed_ends_with_the_same_bits(which, tmp_path):
    mesh, draw, n_kills = (1, 2), random.Random(which), 0
    finished(tmp_path / "warm", mesh, saves=STEPS // 2)
    started = time.monotonic()
    finished(tmp_path / "whole", mesh, saves=STEPS // 2)
    seconds = time.monotonic() - started
    run = tmp_path / "run"

    def how() -> list[str]:
        return ["--resume"] if list_checkpoints(run / "checkpoints") else []

    for _ in range(4 * N_KILLS):
        if n_kills == N_KILLS:
            break
        ranks = StartedRanks(2, tmp_path / "log", train, words(run, mesh, *how(), saves=STEPS // 2))
        time.sleep(draw.uniform(0, seconds))
        killed = draw.sample(ranks.processes, 1 if which == "one" else 2)
        in_time = all(process.is_alive() for process in ranks.processes)
        for process in killed:
            process.kill()
        statuses = ranks.wait()
        assert all(status in (0, 2, -9) for status in statuses), ranks.printed()[-3000:]
        for checkpoint in list_checkpoints(run / "checkpoints"):
            verify_checksums(checkpoint)
        if in_time:
            n_kills += 1
        if (run / "sae_weights.safetensors").is_file():  # it was done: from the start
            shutil.rmtree(run)
    finished(run, mesh, *how(), saves=STEPS // 2)
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert_same(run, tmp_path / "whole")
    print(f"{n_kills} kills within {seconds:.1f} s")
