"""Writes that are whole or absent: after errors, after kills, and over earlier content."""

import os
import signal
from pathlib import Path

import pytest

from sae_lens_sparsemax.files import atomic_directory, atomic_file, atomic_write_bytes, atomic_write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_directory_appears_only_when_complete(tmp_path):
    target = tmp_path / "runs" / "1000"
    with atomic_directory(target) as new:
        (new / "weights").write_text("w")
        (new / "sub").mkdir()
        (new / "sub" / "state").write_text("s")
        assert not target.exists()
    assert (target / "weights").read_text() == "w"
    assert (target / "sub" / "state").read_text() == "s"
    assert names(target.parent) == ["1000"]


def test_error_leaves_the_earlier_directory(tmp_path):
    target = tmp_path / "1000"
    target.mkdir()
    (target / "weights").write_text("old")
    with pytest.raises(OSError, match="disk"), atomic_directory(target) as new:
        (new / "weights").write_text("half")
        raise OSError("disk full")
    assert (target / "weights").read_text() == "old"
    assert names(tmp_path) == ["1000"]


def test_directory_is_replaced_whole(tmp_path):
    target = tmp_path / "1000"
    target.mkdir()
    (target / "stale").write_text("old")
    with atomic_directory(target) as new:
        (new / "weights").write_text("new")
    assert names(target) == ["weights"]
    assert names(tmp_path) == ["1000"]


def test_killed_writer_leaves_nothing_that_looks_like_a_checkpoint(tmp_path):
    target = tmp_path / "1000"

    process = os.fork()
    if process == 0:
        try:
            with atomic_directory(target) as new:
                (new / "weights").write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert not target.exists()
    with atomic_directory(target) as new:
        assert not any(new.iterdir())
        (new / "weights").write_text("whole")
    assert names(tmp_path) == ["1000"]


def test_a_kill_between_the_two_renames_is_repaired(tmp_path):
    (tmp_path / ".1000.old").mkdir()
    (tmp_path / ".1000.old" / "weights").write_text("old")
    with pytest.raises(OSError), atomic_directory(tmp_path / "1000"):
        assert (tmp_path / "1000" / "weights").read_text() == "old"
        raise OSError
    assert (tmp_path / "1000" / "weights").read_text() == "old"


def test_file_is_replaced_and_leaves_no_sibling(tmp_path):
    atomic_write_text(tmp_path / "a" / "log.json", "ä")
    atomic_write_bytes(tmp_path / "a" / "log.json", "ö".encode())
    assert (tmp_path / "a" / "log.json").read_text(encoding="utf-8") == "ö"
    assert names(tmp_path / "a") == ["log.json"]


def test_a_file_that_another_writes_takes_its_place_only_when_whole(tmp_path):
    path = tmp_path / "a" / "tensors"
    with atomic_file(path) as new:
        new.write_text("old")
        assert not path.exists()
    with pytest.raises(OSError, match="disk"), atomic_file(path) as new:
        new.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert names(path.parent) == ["tensors"]
