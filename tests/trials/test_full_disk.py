"""A disk that fills, at each write in turn: one sentence, what was saved is whole, and the same command goes on."""

import errno
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from sae_lens_sparsemax.files import (
    added_files,
    atomic_directory,
    atomic_write_text,
    read_object,
    save_json,
    save_tensors,
    verify_checksums,
    whole_files,
)
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.training.checkpoints import list_checkpoints, newest_checkpoint
from sae_lens_sparsemax.training.log import TrainingLog, read_metrics
from sae_lens_sparsemax.training.synthetic_runner import SyntheticTrainingRunner
from tests.training.test_checkpoints import config

FULL = r"could not be written: .*(No space left on device|file write failed)"


@contextmanager
def full_after(n_flushes: int) -> Iterator[list[int]]:
    """The disk is full at the flush with this number, as it is for systems that give out space late."""
    done = [0]

    def fsync(descriptor: int) -> None:
        done[0] += 1
        if done[0] > n_flushes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whole_files.os, "fsync", fsync)
        yield done


def test_each_way_of_writing_says_which_file_and_leaves_the_earlier_one(tmp_path, monkeypatch):
    ways = {
        "a.json": lambda path: save_json({"a": 1}, path),
        "a.txt": lambda path: atomic_write_text(path, "new"),
        "a.safetensors": lambda path: save_tensors({"a": torch.zeros(3)}, path),
    }
    for name, write in ways.items():
        write(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with full_after(0), pytest.raises(OSError, match=rf"{name}' {FULL}"):
            write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    for folder in (atomic_directory, added_files):
        with folder(tmp_path / "folder") as new:
            (new / "a").write_text("old")
        with full_after(0), pytest.raises(OSError, match=rf"folder' {FULL}"), folder(tmp_path / "folder") as new:
            (new / "a").write_text("new")
        assert (tmp_path / "folder" / "a").read_text() == "old"
        for error in (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            RuntimeError("basic_ios::clear: iostream error: file write failed"),
            RuntimeError("[enforce fail at inline_container.cc:664] PytorchStreamWriter failed: file write failed"),
        ):
            with pytest.raises(OSError, match=rf"folder' {FULL}"), folder(tmp_path / "folder"):
                raise error
        with pytest.raises(RuntimeError, match="a bug"), folder(tmp_path / "folder"):
            raise RuntimeError("a bug")
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []


def test_a_run_on_a_disk_that_fills_at_any_flush_keeps_what_was_saved_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingLog, "close", lambda self: None)  # drawing takes longer than these runs
    whole = tmp_path / "whole"
    torch.manual_seed(0)
    with full_after(10**9) as done:
        SyntheticTrainingRunner(config(whole, n_checkpoints=2, training_samples=320)).run()
    expected = load_sae(str(whole)).state_dict()
    for n_flushes in range(1, done[0], max(1, done[0] // 6)):
        folder = tmp_path / str(n_flushes)
        torch.manual_seed(0)
        with full_after(n_flushes), pytest.raises((OSError, ValueError), match="No space left on device"):
            SyntheticTrainingRunner(config(folder, n_checkpoints=2, training_samples=320)).run()
        checkpoints = list_checkpoints(folder / "checkpoints")
        for checkpoint in checkpoints:
            verify_checksums(checkpoint)
        changes = {"resume_from_checkpoint": str(newest_checkpoint(folder / "checkpoints"))} if checkpoints else {}
        is_finished = (folder / "sae_weights.safetensors").is_file()
        torch.manual_seed(0)
        SyntheticTrainingRunner(config(folder, n_checkpoints=2, training_samples=320, **changes)).run(
            overwrite=is_finished and not changes
        )
        for name, tensor in load_sae(str(folder)).state_dict().items():
            assert torch.equal(tensor, expected[name]), n_flushes
        assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [
            line["step"] for line in read_metrics(whole / "metrics.jsonl")
        ]
        assert not [path for path in folder.rglob(".*") if path.name.endswith((".new", ".old"))]
        shutil.rmtree(folder)


def test_a_line_of_the_log_that_does_not_fit_is_said_and_left_out_afterwards(tmp_path, monkeypatch):
    folder = tmp_path / "run"

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full() if a[:1] == ("a",) else opened(self, *a, **k))
    with pytest.raises(OSError, match=rf"metrics.jsonl' {FULL}"):
        SyntheticTrainingRunner(config(folder)).run()


TRAIN = "train quickstart --training_tokens 8192 --n_checkpoints 6 --sae.d_sae 64 --sae.target_l0 8 --output_path"
_SCRIPT = """
mount -t tmpfs -o size={size}k tmpfs {disk} || exit 77
{python} -m sae_lens_sparsemax {command}
status=$?
rm -rf {kept}; cp -r {disk} {kept}
exit $status
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [3000, 12000, 20000])
def test_the_command_line_on_a_small_disk(tmp_path, size):
    """A real one, of so many kilobytes, where a user may mount."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    (disk := tmp_path / "disk").mkdir()
    script = _SCRIPT.format(
        size=size, disk=disk, kept=tmp_path / "kept", python=sys.executable,
        command=f"{TRAIN} {disk}/out",
    )  # fmt: skip
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode in (1, 77) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip("no mounts here")
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.returncode in (0, 2), done.stderr[-3000:]
    if done.returncode == 2:
        assert "No space left on device" in done.stderr or "could not be written" in done.stderr, done.stderr[-1000:]
    for checkpoint in list_checkpoints(tmp_path / "kept" / "out" / "checkpoints"):
        verify_checksums(checkpoint)
        assert read_object(checkpoint / "cfg.json")
    if (tmp_path / "kept" / "out" / "sae_weights.safetensors").is_file():
        load_sae(str(tmp_path / "kept" / "out"))
