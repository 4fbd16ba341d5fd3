"""Runs over several ranks of which one, or all, are killed at random moments: the same command goes on.

`TRIAL_KILLS` says how often each run is killed, on 2 × 2 ranks then. It saves after every other step, so kills often
come while it does; in every other run a thread of each rank saves.
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
N_KILLS = int(os.environ.get("TRIAL_KILLS", "1"))


@pytest.mark.parametrize("which", ["one", "all"])
def test_a_run_whose_ranks_are_killed_ends_with_the_same_bits(which, tmp_path):
    mesh = (2, 2) if "TRIAL_KILLS" in os.environ else (1, 2)
    draw, n_kills, n_ranks = random.Random(which), 0, mesh[0] * mesh[1]
    finished(tmp_path / "warm", mesh, saves=STEPS // 2)
    started = time.monotonic()
    finished(tmp_path / "whole", mesh, saves=STEPS // 2)
    seconds = time.monotonic() - started
    run = tmp_path / "run"

    def how() -> list[str]:
        return ["--resume"] if list_checkpoints(run / "checkpoints") else []

    for number in range(4 * N_KILLS):
        if n_kills == N_KILLS:
            break
        more = [*how(), "--parallel.async_checkpoints", str(number % 2 == 1).lower()]
        ranks = StartedRanks(n_ranks, tmp_path / "log", train, words(run, mesh, *more, saves=STEPS // 2))
        time.sleep(draw.uniform(0, seconds))
        killed = draw.sample(ranks.processes, 1 if which == "one" else n_ranks)
        in_time = all(process.is_alive() for process in ranks.processes)
        for process in killed:
            process.kill()
        statuses = ranks.wait()
        assert all(status in (0, 2, -9) for status in statuses), ranks.printed()[-3000:]
        checkpoints = list_checkpoints(run / "checkpoints")
        for checkpoint in checkpoints:
            verify_checksums(checkpoint)
        print(f"{'killed' if in_time else 'done'}, {len(checkpoints)} checkpoints, all whole")
        if in_time:
            n_kills += 1
        if (run / "sae_weights.safetensors").is_file():  # it was done: from the start
            shutil.rmtree(run)
    finished(run, mesh, *how(), saves=STEPS // 2)
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert_same(run, tmp_path / "whole")
    print(f"{n_kills} kills within {seconds:.1f} s")
