"""Runs over several ranks: counts, logs and weights of one process, and an end that all ranks agree on."""

import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from sae_lens_sparsemax import SparsemaxTrainingSAE
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.files import verify_checksums
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.training import ranks_checkpoints
from sae_lens_sparsemax.training.checkpoints import list_checkpoints, newest_checkpoint
from sae_lens_sparsemax.training.log import TrainingLog, read_metrics
from sae_lens_sparsemax.training.ranks_batches import AgreedBatches
from sae_lens_sparsemax.training.ranks_trainer import RanksTrainer
from tests.support.ranks import ALL_MEMBERS
from tests.support.started_ranks import StartedRanks

BATCH, STEPS = 128, 16
TRAIN = ["train", "quickstart", "--train_batch_size_tokens", str(BATCH), "--sae.d_sae", "48", "--sae.target_l0", "8"]
TRAIN += ["--n_batches_in_buffer", "16", "--store_batch_size_prompts", "8", "--logger.wandb_log_frequency", "4"]

SAVES = [("save", 0), ("save", 1), ("_folder_of", 1), ("seal_checkpoint", 0)]
"""At which call of a save, and on which rank, a process is killed."""
OTHERS = [((2, 2), (1, 2)), ((2, 2), (1, 1)), ((1, 1), (1, 2)), ((1, 1), (2, 1))]
"""Meshes of a checkpoint, and of the run that goes on from it."""


def words(output: Path, mesh: tuple[int, int], *more: str, steps: int = STEPS, saves: int = 0) -> list[str]:
    data, concepts = mesh
    parallel = ["--parallel.data", str(data), "--parallel.concepts", str(concepts)]
    sizes = ["--training_tokens", str(steps * BATCH), "--n_checkpoints", str(saves)]
    return [*TRAIN, *sizes, "--output_path", str(output), *(parallel if data * concepts > 1 else []), *more]


def train(arguments: list[str]) -> int:
    """What each rank does."""
    TrainingLog.close = lambda self: None  # drawing takes longer than these runs
    return main(arguments)


def train_disturbed(arguments: list[str], what: str, rank: int) -> int:
    """The same, but something happens to one rank before its eleventh step."""

    def step(self, batch):
        if self.n_training_steps == 10 and self.ranks.rank == rank:
            if what == "fails":
                raise ValueError("this must be said once, got it")
            os.kill(os.getpid(), getattr(signal, what))
        return before(self, batch)

    before, RanksTrainer.step = RanksTrainer.step, step
    return train(arguments)


def train_without_data(arguments: list[str]) -> int:
    """The same, but the second rank has nine batches only."""

    def draw(self):
        self.n_drawn = getattr(self, "n_drawn", 0) + 1
        if self.n_drawn == 10 and dist.get_rank() == 1:
            self._batches = iter(())
        return before(self)

    before, AgreedBatches.__next__ = AgreedBatches.__next__, draw
    return train(arguments)


def finished(output: Path, mesh: tuple[int, int], *more: str, **sizes: int) -> str:
    n_ranks = mesh[0] * mesh[1]
    ranks = StartedRanks(n_ranks, output.with_suffix(".log"), train, words(output, mesh, *more, **sizes))
    assert ranks.wait() == [0] * n_ranks, ranks.printed()[-3000:]
    return ranks.printed()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[[tuple[int, int]], Path]:
    """The output of a run that nobody disturbed, by mesh."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def output(mesh: tuple[int, int]) -> Path:
        finished(folder / f"{mesh[0]}x{mesh[1]}", mesh)
        return folder / f"{mesh[0]}x{mesh[1]}"

    return output


def assert_same(run: Path, whole: Path) -> None:
    """The same bits, and the same log but for the time."""
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        one, other = load_file(run / name), load_file(whole / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    logs = [[line | {"seconds": 0} for line in read_metrics(each / "metrics.jsonl")] for each in (run, whole)]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_a_stop_signal_to_one_rank_saves_one_checkpoint_from_which_all_go_on_to_the_bit(undisturbed, tmp_path):
    stopped = StartedRanks(2, tmp_path / "a.log", train_disturbed, words(tmp_path / "run", (1, 2)), "SIGTERM", 1)
    assert stopped.wait() == [130, 130]
    assert stopped.printed().count("Stopped.") == 1
    # The signal came while the eleventh batch was worked on; it is known when the twelfth is drawn.
    assert [path.name for path in list_checkpoints(tmp_path / "run/checkpoints")] == [str(12 * BATCH)]
    finished(tmp_path / "run", (1, 2), "--resume", "--save_final_checkpoint", "true")
    assert_same(tmp_path / "run", undisturbed((1, 2)))
    # What the processes wrote, each its part, is the SAE that the first one put together.
    last, whole = (
        load_sae(str(each)).state_dict() for each in (newest_checkpoint(tmp_path / "run/checkpoints"), tmp_path / "run")
    )
    assert all(torch.equal(last[name], whole[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "rank"), [("SIGKILL", 3), ("fails", 0), *([("SIGKILL", 0), ("fails", 3)] if ALL_MEMBERS else [])]
)
def test_a_rank_that_ends_ends_all_with_one_sentence_and_the_run_goes_on_to_the_bit(what, rank, undisturbed, tmp_path):
    ranks = StartedRanks(4, tmp_path / "a.log", train_disturbed, words(tmp_path / "run", (2, 2), saves=3), what, rank)
    statuses = ranks.wait()
    assert statuses == [-9 if what == "SIGKILL" and each == rank else 2 for each in range(4)]
    sentence = "another of the 4 processes" if what == "SIGKILL" else "this must be said once"
    assert ranks.printed().count("sparsemax-sae: error") == ranks.printed().count(sentence) == 1
    assert "Traceback" not in ranks.printed()
    finished(tmp_path / "run", (2, 2), "--resume", saves=3)
    assert_same(tmp_path / "run", undisturbed((2, 2)))


@pytest.mark.slow
def test_a_rank_without_data_ends_all_with_one_sentence(tmp_path):
    ranks = StartedRanks(2, tmp_path / "a.log", train_without_data, words(tmp_path / "run", (2, 1)))
    assert ranks.wait() == [2, 2]
    assert ranks.printed().count("the data must last until the end of the run") == 1
    assert "Traceback" not in ranks.printed()


def train_recording(arguments: list[str]) -> int:
    """What each rank does; it leaves the batches of the estimate, and the whitening that is folded in the end."""

    def draw(self):
        drawn.append(before(self))
        return drawn[-1]

    def fold(self, *_: Any, **given: torch.Tensor):
        output = Path(arguments[arguments.index("--output_path") + 1])
        torch.save((torch.cat(drawn[:3]), given), f"{output}-{dist.get_rank()}.pt")
        return fold_before(self, *_, **given)

    drawn, before, AgreedBatches.__next__ = [], AgreedBatches.__next__, draw
    fold_before = SparsemaxTrainingSAE.fold_activation_whitening
    SparsemaxTrainingSAE.fold_activation_whitening = fold
    return train(arguments)


@pytest.mark.slow
def test_what_scales_activations_is_estimated_on_the_tokens_of_all_ranks_once(tmp_path):
    more = ["--sae.normalize_activations", "covariance_whitening", "--sae.unit_norm_query", "false"]
    more += ["--n_batches_for_norm_estimate", "3", "--sae.structure", "mlp", "--sae.apply_b_dec_to_input", "true"]
    arguments = words(tmp_path / "run", (1, 2), *more, saves=2)
    ranks = StartedRanks(2, tmp_path / "a.log", train_recording, arguments)
    assert ranks.wait() == [0, 0], ranks.printed()[-3000:]
    drawn, folded = zip(*(torch.load(tmp_path / f"run-{rank}.pt") for rank in range(2)), strict=True)
    batches = torch.cat([each.unflatten(0, (3, -1)) for each in drawn], dim=1)
    alone = ActivationScaler()
    alone.estimate_whitening(batches.shape[-1], iter(batches), 3)
    for given in folded:
        assert torch.equal(given["mean"], alone.whitening.mean)
        # Eigenvectors are rounded as the memory lies that they are made in.
        torch.testing.assert_close(given["whitening_matrix"], alone.whitening.matrix)
    checkpoint = list_checkpoints(tmp_path / "run/checkpoints")[0]
    shutil.copytree(checkpoint, tmp_path / "resumed/checkpoints" / checkpoint.name)
    finished(tmp_path / "resumed", (1, 2), *more, "--resume", saves=2)
    one, other = (load_file(tmp_path / name / "sae_weights.safetensors") for name in ("run", "resumed"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def killed_while_saving(arguments: list[str], where: str, rank: int) -> int:
    """What each rank does; one is killed when it calls a function of the saving of the second checkpoint."""

    def call(*given, **named):
        folders = list_checkpoints(Path(arguments[arguments.index("--output_path") + 1]) / "checkpoints")
        if dist.get_rank() == rank and len(folders) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*given, **named)

    owner = FileSystemWriter if hasattr(FileSystemWriter, where) else ranks_checkpoints
    before = getattr(owner, where)
    setattr(owner, where, call)
    return train(arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "rank"), SAVES if ALL_MEMBERS else SAVES[::2])
def test_a_rank_killed_while_it_saves_leaves_the_earlier_checkpoint_alone(where, rank, undisturbed, tmp_path):
    arguments = words(tmp_path / "run", (1, 2), saves=3)
    assert sorted(StartedRanks(2, tmp_path / "a.log", killed_while_saving, arguments, where, rank).wait()) == [-9, 2]
    (earlier,) = list_checkpoints(tmp_path / "run/checkpoints")
    finished(tmp_path / "run", (1, 2), "--resume", saves=3)
    assert_same(tmp_path / "run", undisturbed((1, 2)))
    left = {path.name for path in (tmp_path / "run/checkpoints").iterdir()}
    assert len(left) == 3 and earlier.name in left


@pytest.mark.slow
@pytest.mark.parametrize(("where", "rank"), [("write_data", 1), *([("finish", 0)] if ALL_MEMBERS else [])])
def test_a_rank_killed_while_a_thread_saves_leaves_the_earlier_checkpoint_alone(where, rank, undisturbed, tmp_path):
    arguments = words(tmp_path / "run", (1, 2), "--parallel.async_checkpoints", "true", saves=3)
    assert sorted(StartedRanks(2, tmp_path / "a.log", killed_while_saving, arguments, where, rank).wait()) == [-9, 2]
    (earlier,) = list_checkpoints(tmp_path / "run/checkpoints")
    verify_checksums(earlier)
    finished(tmp_path / "run", (1, 2), "--resume", "--parallel.async_checkpoints", "true", saves=3)
    assert_same(tmp_path / "run", undisturbed((1, 2)))
    checkpoints = list_checkpoints(tmp_path / "run/checkpoints")
    assert len(checkpoints) == 3 and earlier in checkpoints
    # What a thread wrote while training went on is of the step at which it began.
    shutil.rmtree(checkpoints.pop())
    (tmp_path / "run/sae_weights.safetensors").unlink()
    finished(tmp_path / "run", (1, 2), "--resume", saves=3)
    assert_same(tmp_path / "run", undisturbed((1, 2)))


def told_again_while_saving(arguments: list[str]) -> int:
    """What each rank does; before the eleventh step it is told to stop, and again in the midst of the checkpoint."""

    def write(self, *given):
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        return before(self, *given)

    before, FileSystemWriter.write_data = FileSystemWriter.write_data, write
    return train_disturbed(arguments, "SIGTERM", int(os.environ["RANK"]))


@pytest.mark.slow
def test_ranks_told_again_to_stop_while_they_save_save_all_the_same(undisturbed, tmp_path):
    arguments = words(tmp_path / "run", (1, 2), "--parallel.async_checkpoints", "true")
    stopped = StartedRanks(2, tmp_path / "a.log", told_again_while_saving, arguments)
    assert stopped.wait() == [130, 130], stopped.printed()[-3000:]
    (checkpoint,) = list_checkpoints(tmp_path / "run/checkpoints")
    verify_checksums(checkpoint)
    finished(tmp_path / "run", (1, 2), "--resume", "--save_final_checkpoint", "true")
    assert_same(tmp_path / "run", undisturbed((1, 2)))
    # What the processes wrote, each its part, is the SAE that the first one put together.
    last, whole = (
        load_sae(str(each)).state_dict() for each in (newest_checkpoint(tmp_path / "run/checkpoints"), tmp_path / "run")
    )
    assert all(torch.equal(last[name], whole[name]) for name in whole)


def train_on_a_full_disk(arguments: list[str]) -> int:
    """What each rank does; from the second checkpoint on, the second rank finds no space for its part."""

    def write(self, *given):
        if dist.get_rank() == 1 and list_checkpoints(Path(self.path).parents[1]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return before(self, *given)

    before, FileSystemWriter.write_data = FileSystemWriter.write_data, write
    return train(arguments)


@pytest.mark.slow
def test_a_full_disk_of_one_rank_is_said_once_and_leaves_the_earlier_checkpoint_alone(undisturbed, tmp_path):
    ranks = StartedRanks(2, tmp_path / "a.log", train_on_a_full_disk, words(tmp_path / "run", (1, 2), saves=3))
    assert ranks.wait() == [2, 2]
    assert ranks.printed().count("could not be written: No space left on device") == 1
    assert "Traceback" not in ranks.printed()
    assert len([*(tmp_path / "run/checkpoints").iterdir()]) == 1
    finished(tmp_path / "run", (1, 2), "--resume", saves=3)
    assert_same(tmp_path / "run", undisturbed((1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), OTHERS if ALL_MEMBERS else OTHERS[1:3])
def test_another_mesh_goes_on_with_the_weights_and_says_what_is_lost(before, after, tmp_path):
    finished(tmp_path / "run", before, saves=1)
    (checkpoint,) = list_checkpoints(tmp_path / "run/checkpoints")
    n_done = int(checkpoint.name) // BATCH
    for name, mesh in (("same", before), ("other", after)):
        shutil.copytree(checkpoint, tmp_path / name / "checkpoints" / checkpoint.name)
        # With no step left, what is written at the end is what was read.
        said = finished(tmp_path / name, mesh, "--resume", steps=n_done)
        assert ("with an empty shuffle buffer" in said) == (mesh != before)
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        one, other = load_file(tmp_path / "same" / name), load_file(tmp_path / "other" / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name
    finished(tmp_path / "other", after, "--resume", steps=n_done + 3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] if ALL_MEMBERS else [signal.SIGTERM])
def test_a_signal_to_torchrun_saves_one_checkpoint_of_one_step(number, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "sae_lens_sparsemax", *words(tmp_path / "run", (1, 2), steps=2000)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        torchrun = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    while len(read_metrics(tmp_path / "run/metrics.jsonl")) < 2:
        assert torchrun.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    torchrun.send_signal(number)
    torchrun.wait(60)
    said = (tmp_path / "log").read_text()
    assert said.count("Stopped. Continue from the last checkpoint") == 1
    assert said.count("stopping after this step") == 1
    (checkpoint,) = list_checkpoints(tmp_path / "run/checkpoints")
    finished(tmp_path / "run", (1, 2), "--resume", steps=int(checkpoint.name) // BATCH + 2)
