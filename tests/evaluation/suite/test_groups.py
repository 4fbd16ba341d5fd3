import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sae_lens_sparsemax.evaluation.suite.groups import MetricGroup, NotMeasured, run_groups, sae_digest
from tests.support.ranks import on_ranks


class Counter:
    """A group that counts how often it is computed."""

    def __init__(self, name, **settings):
        self.times = 0
        self.group = MetricGroup(name, settings, self.compute)

    def compute(self):
        self.times += 1
        return {"value": self.times}


def run(counters, folder, said=None, **kwargs):
    said = [] if said is None else said
    groups = [counter.group for counter in counters]
    return run_groups(groups, folder, "an SAE", say=said.append, progress=False, **kwargs)


def test_a_finished_group_is_kept_until_its_settings_or_the_sae_change(tmp_path):
    first, said = Counter("set/a", n=1), []
    assert run([first], tmp_path)["set/a"] == {"value": 1}
    assert run([first], tmp_path, said)["set/a"] == {"value": 1}
    assert first.times == 1
    assert "set/a: kept" in said[0]
    changed = Counter("set/a", n=2)
    run([changed], tmp_path)
    assert changed.times == 1
    run_groups([changed.group], tmp_path, "another SAE", say=said.append, progress=False)
    assert changed.times == 2
    run([changed], tmp_path, overwrite=True)
    assert changed.times == 3


def test_an_interrupted_run_goes_on_with_the_group_it_stopped_in(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    first = Counter("a")
    with pytest.raises(KeyboardInterrupt):
        run_groups([first.group, MetricGroup("b", {}, interrupted)], tmp_path, "", say=print, progress=False)
    second = Counter("b")
    run_groups([first.group, second.group], tmp_path, "", say=print, progress=False)
    assert (first.times, second.times) == (1, 1)


def test_a_file_cut_short_is_measured_again(tmp_path):
    counter = Counter("a")
    run([counter], tmp_path)
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text[: len(text) // 2])
    run([counter], tmp_path)
    assert counter.times == 2
    assert json.loads((tmp_path / "a.json").read_text())["result"] == {"value": 2}


def test_only_some_groups_are_measured_and_finished_ones_are_shown_with_them(tmp_path):
    a, b, c = Counter("a"), Counter("b"), Counter("c")
    assert set(run([a, b, c], tmp_path, only=["b"])) == {"b"}
    assert set(run([a, b, c], tmp_path, only=["a"])) == {"a", "b"}
    assert (a.times, b.times, c.times) == (1, 1, 0)
    with pytest.raises(ValueError, match="groups must be one of a, b, c, got 'zero_shoot'"):
        run([a, b, c], tmp_path, only=["zero_shoot"])


def test_what_could_not_be_measured_says_why_and_is_tried_again(tmp_path):
    def compute():
        raise NotMeasured("no encoder was named")

    said = []
    result = run_groups([MetricGroup("a", {}, compute)], tmp_path, "", say=said.append, progress=False)
    assert result == {"a": {"not_measured": "no encoder was named"}}
    assert said == ["a: not measured, no encoder was named"]
    assert not list(tmp_path.iterdir())


def test_the_digest_sees_weights_and_settings_and_no_metadata():
    def sae(**kwargs):
        torch.manual_seed(0)
        return StandardSAE(StandardSAEConfig(d_in=4, d_sae=8, **kwargs))

    one, other = sae(), sae()
    other.cfg.metadata.hook_name = "elsewhere"
    assert sae_digest(one) == sae_digest(other)
    assert sae_digest(one) != sae_digest(sae(apply_b_dec_to_input=False))
    with torch.no_grad():
        other.W_dec[0, 0] += 1e-6
    assert sae_digest(one) != sae_digest(other)


def test_a_group_that_fails_is_left_out_with_its_reason_unless_nothing_else_was_measured(tmp_path):
    def fails():
        raise ValueError("labels must lie in [0, 3), got 0 to 9")

    def no_model():
        raise ValueError("there is no such model")

    bad, good, said = MetricGroup("bad", {}, fails), Counter("good"), []
    groups = [bad, good.group, MetricGroup("other", {}, fails)]
    found = run_groups(groups, tmp_path, "", say=said.append, progress=False)
    assert found["good"] == {"value": 1} and "[0, 3)" in found["bad"]["not_measured"] == found["other"]["not_measured"]
    assert said[0].startswith("bad: not measured, labels must lie")
    for only in (["bad"], ["bad", "other"]):
        with pytest.raises(ValueError, match="labels must lie"):
            run_groups(groups, tmp_path, "", only=only, say=said.append, progress=False)
    with pytest.raises(ValueError, match="no such model"):  # which all would need
        run_groups([good.group, bad._replace(opens=no_model)], tmp_path, "", say=said.append, progress=False)


def measured_on_a_rank(folder: Path, only: tuple[str, ...], fails: bool) -> tuple[Any, list[str], list[str]]:
    """Results, names of the groups that this rank computed, and what it said."""
    done: list[str] = []
    said: list[str] = []

    def compute(name: str) -> dict[str, Any]:
        done.append(name)
        while name == "a" and not (folder / "f.json").is_file():  # takes as long as all others together
            time.sleep(0.01)
        if name == "c" or fails:
            raise (ValueError if fails else NotMeasured)(f"{name} lacks something")
        return {"value": name * 2}

    groups = [MetricGroup(name, {}, partial(compute, name)) for name in "abcdef"]
    try:
        return run_groups(groups, folder, "", only=only, say=said.append, progress=False), done, said
    except ValueError as error:
        return str(error), done, said


def test_of_several_processes_each_measures_the_next_group_when_it_is_free(tmp_path):
    expected = {name: {"value": name * 2} for name in "abcdef"} | {"c": {"not_measured": "c lacks something"}}
    kept, *_ = measured_on_a_rank(tmp_path / "kept", ("b",), False)
    assert kept == {"b": {"value": "bb"}}
    for folder in (tmp_path / "new", tmp_path / "kept"):
        ranks = on_ranks(2, measured_on_a_rank, folder, (), False)
        assert [list(results.items()) for results, *_ in ranks] == [list(expected.items())] * 2
        done = [done for _, done, _ in ranks]
        assert sorted(done[0] + done[1]) == [name for name in "abcdef" if folder.name == "new" or name != "b"]
        assert {len(part) for part in done} == {1, 4 if folder.name == "kept" else 5}  # while one waits in `a`
        said = [line for _, _, lines in ranks for line in lines]
        assert len(said) == (2 if folder.name == "kept" else 1)
        assert json.loads((folder / "f.json").read_text())["result"] == expected["f"]


def test_if_no_process_could_measure_anything_all_raise_what_the_first_group_lacks(tmp_path):
    assert [found for found, *_ in on_ranks(2, measured_on_a_rank, tmp_path, ("d", "b"), True)] == [
        "b lacks something"
    ] * 2
