"""A learning rate that is too high for one arm costs that arm the rate, and nobody else anything."""

import csv
import json

import pytest

from sae_lens_sparsemax.compare import compare, config_from_yaml
from tests.compare.test_compare import SYNTHETIC, write

FAR_TOO_HIGH = 1e30
SETTINGS = {
    **SYNTHETIC,
    "seeds": [0],
    "arms": [
        {"name": "ours", "architecture": "sparsemax", "sparsity_field": "target_l0", "lrs": [FAR_TOO_HIGH, 0.01]},
        {"name": "TopK", "architecture": "topk", "sparsity_field": "k", "lrs": [FAR_TOO_HIGH]},
        {"name": "BatchTopK", "architecture": "batchtopk", "sparsity_field": "k", "lrs": [0.01]},
    ],
}


def rows_of(path):
    return list(csv.DictReader(path.open()))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    arms = [{**arm, "sparsities": [2]} for arm in SETTINGS["arms"]]
    path = write(tmp_path_factory.mktemp("diverged"), {**SETTINGS, "arms": arms})
    before = compare(config_from_yaml(path))
    results = {file: file.read_bytes() for file in before.parent.glob("runs/*/result.json")}
    assert compare(config_from_yaml(path)) == before
    # Nothing is trained again: the files hold the wall time of their training.
    assert results == {file: file.read_bytes() for file in before.parent.glob("runs/*/result.json")}
    return before


def test_what_diverged_loses_and_the_others_are_compared(table):
    rows = {row["arm"]: row for row in rows_of(table.parent / "table.csv")}
    assert rows["ours"]["lr"] == rows["BatchTopK"]["lr"] == "0.01"
    assert all(float(rows[arm]["synthetic/explained_variance"]) > 0 for arm in ("ours", "BatchTopK"))
    assert rows["TopK"]["synthetic/explained_variance"] in ("", "nan")
    assert (table.parent / "pareto.png").is_file()


def test_tables_are_written_though_every_run_diverged(tmp_path):
    arms = [{**SETTINGS["arms"][1], "sparsities": [2]}]
    table = compare(config_from_yaml(write(tmp_path, {**SETTINGS, "arms": arms})))
    assert table.read_text().count("| diverged |") == 1 and len(rows_of(table.parent / "table.csv")) == 1
    assert not list(table.parent.glob("*.png"))


def test_tables_say_which_runs_diverged_and_why(table):
    assert table.read_text().count("| diverged |") == 2
    why = {(row["arm"], float(row["lr"])): row["diverged"] for row in rows_of(table.parent / "runs.csv")}
    assert "lower" in why["ours", FAR_TOO_HIGH] and "lower" in why["TopK", FAR_TOO_HIGH]
    assert not why["ours", 0.01] and not why["BatchTopK", 0.01]


def test_a_run_that_diverged_leaves_a_result_and_no_sae(table):
    for folder in table.parent.glob("runs/*"):
        diverged = json.loads((folder / "result.json").read_text())["diverged"]
        assert (folder / "cfg.json").exists() == (diverged is None)
