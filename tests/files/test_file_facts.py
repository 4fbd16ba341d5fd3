"""What is known of the files that results came from."""

import os

from sae_lens_sparsemax.files import contents as module
from sae_lens_sparsemax.files import file_facts


def test_files_are_known_by_their_content_wherever_it_changes_and_not_by_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_HASHED_BYTES", 4)
    path = tmp_path / "a.txt"

    def facts(content):
        path.write_text(content)
        os.utime(path, (len(content), 7))
        return file_facts([str(path), None, "user/repository"])

    first = facts("head, middle, tail")
    assert facts("head, middle, tail") == first
    assert set(first) == {str(path)}
    assert all(facts(other) != first for other in ("Head, middle, tail", "head, middle, taiL", "head, middle tail"))
    assert file_facts([str(tmp_path)])[str(tmp_path)] == [("a.txt", 17, *facts("head, middle tail")[str(path)][0][2:])]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert file_facts(["~/a.txt"])["~/a.txt"] == facts("head, middle tail")[str(path)]
    assert len({str(facts(short)) for short in ("", "a", "ab", "abcd", "abcde", "abcdefgh", "abcdefghi")}) == 7
