import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sae_lens_sparsemax.files import only_writer, require_writable


@pytest.mark.parametrize(
    "place", ["/proc/pages", "/proc/self/deep/pages", "FILE", "FILE/below", "a" * 300, "nu\0ll", "LINK"]
)
def test_a_place_that_cannot_be_written_to_is_refused_by_name(tmp_path, place):
    (tmp_path / "FILE").write_text("in the way")
    (tmp_path / "LINK").symlink_to(tmp_path / "nowhere" / "at all")
    with pytest.raises(ValueError, match="--output_path must be a place that can be written to, got"):
        require_writable(tmp_path / place, "--output_path")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "LINK"]


def test_asking_leaves_nothing_behind(tmp_path):
    (tmp_path / "there").mkdir()
    require_writable(tmp_path / "a" / "b", "--output_path")
    require_writable(tmp_path / "there", "--output_path")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_several_may_ask_for_the_same_new_folder_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # for speed

    def ask(_):
        for _ in range(100):
            require_writable(tmp_path / "a" / "b", "--output_path")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(ask, range(4)))


def test_a_second_process_is_refused_until_the_first_ends_or_is_killed(tmp_path):
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        with only_writer(tmp_path, "output_path"):
            # What a decode worker would be: it must not keep the lock when its parent is killed.
            if os.fork() == 0:
                time.sleep(5)
                os._exit(0)
            os.write(writing, b".")
            time.sleep(30)
            os._exit(1)
    assert os.read(reading, 1) == b"."
    refusal = pytest.raises(ValueError, match="output_path must be a folder that no other process is writing to, got")
    with refusal, only_writer(tmp_path, "output_path"):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with only_writer(tmp_path, "output_path"), only_writer(tmp_path, "output_path"):
        (tmp_path / "result").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
