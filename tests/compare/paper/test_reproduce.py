"""A table from its recipe, on a random language model: trained once, measured once, set beside the paper."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.compare.paper.columns import flat
from sae_lens_sparsemax.compare.paper.runner import averaged
from sae_lens_sparsemax.sae import config as sae_config
from tests.support.tiny_language_model import documents

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def recipe(tmp_path, tiny_model_folder) -> Path:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents(40)))
    base = {
        "suite": "text",
        "output_path": str(tmp_path / "out"),
        "train": {
            "model_name": str(tiny_model_folder),
            "model_class_name": "TransformerBridge",
            "hook_name": "blocks.0.hook_resid_post",
            "dataset_path": str(text),
            "held_out_fraction": 0.2,
            "context_size": 16,
            "store_batch_size_prompts": 4,
            "n_batches_in_buffer": 8,
            "train_batch_size_tokens": 32,
            "training_tokens": 10_000,
            "verbose": False,
            "sae": {"d_sae": 32},
        },
        "saes": {
            "ours": {"target_l0": 4},
            "TopK": {"architecture": "topk", "match": "ours"},
            "ReLU": {"architecture": "standard", "l1_coefficient": 1.0},
        },
        "evaluate": {"datasets": {"text": {"path": str(text), "held_out": True}}, "n_tokens": 64, "batch_size": 4},
        "small": {"train": {"training_tokens": 320}},
    }
    table = {
        "base": "base.yaml",
        "title": "Table 0",
        "arms": ["ours", "TopK"],
        "groups": ["text/reconstruction"],
        "columns": {"L0": "text/reconstruction.reconstruction.l0", "FVU": "text/reconstruction.reconstruction.fvu"},
        "paper": {"TopK": [32, 0.1]},
        "notes": "The paper is silent.",
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    (tmp_path / "table0.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    mean = table | {"title": "Figure 0", "average_of": ["table0.yaml", "table0.yaml"]}
    (tmp_path / "figure0.yaml").write_text(yaml.safe_dump(mean, sort_keys=False))
    return tmp_path / "table0.yaml"


def test_a_table_is_trained_and_measured_once(recipe, tmp_path, capsys):
    command = ["reproduce", str(recipe), "--small"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "TopK: k = " in said.err and said.err.count("training in") == 2
    table = (tmp_path / "out" / "table0-small" / "table.md").read_text()
    assert table in said.out
    assert "## The paper" in table and "| TopK | 32 | 0.1 |" in table and "The paper is silent." in table
    rows = list(csv.reader((tmp_path / "out" / "table0-small" / "table.csv").open()))
    assert rows[0] == ["SAE", "L0", "FVU"] and [r[0] for r in rows[1:]] == ["ours", "TopK"]
    (topk,) = (tmp_path / "out" / "saes").glob("topk-*")
    assert float(rows[2][1]) <= json.loads((topk / "cfg.json").read_text())["k"] <= 8

    assert main(command) == 0
    said = capsys.readouterr()
    assert "training in" not in said.err and said.err.count("it was trained earlier") == 3
    assert said.err.count("it was finished earlier") == 2
    assert list(csv.reader((tmp_path / "out" / "table0-small" / "table.csv").open())) == rows

    # The mean of a table and itself, with an SAE more, which alone is trained.
    assert main(["reproduce", str(tmp_path / "figure0.yaml"), "--small", "--arms", "[TopK, ReLU]"]) == 0
    assert capsys.readouterr().err.count("training in") == 1
    mean = list(csv.reader((tmp_path / "out" / "figure0-small" / "table.csv").open()))
    assert mean[1][0] == "TopK" and float(mean[1][2]) == pytest.approx(float(rows[2][2]))


def test_an_sae_is_trained_again_where_a_default_means_another_one(recipe, capsys, monkeypatch):
    for changed, trained in (({}, 1), ({}, 0), ({"alpha": 4.0}, 1)):
        monkeypatch.setattr(sae_config, "BEST_GATE", {**sae_config.BEST_GATE, **changed})
        assert main(["reproduce", str(recipe), "--small", "--arms", "[ours]"]) == 0
        assert capsys.readouterr().err.count("training in") == trained


def test_an_interrupted_training_is_not_taken_for_a_trained_sae(recipe, tmp_path, capsys):
    assert main(["reproduce", str(recipe), "--small", "--arms", "[ours]"]) == 0
    (folder,) = (tmp_path / "out" / "saes").iterdir()
    (folder / "trained.json").unlink()
    capsys.readouterr()
    assert main(["reproduce", str(recipe), "--small", "--arms", "[ours]"]) == 0
    assert "ours: training in" in capsys.readouterr().err


def test_a_training_that_diverges_leaves_its_row_empty_and_is_not_repeated(recipe, tmp_path, capsys):
    values = yaml.safe_load((tmp_path / "base.yaml").read_text())
    values["saes"]["ours"]["train"] = {"lr": 1e30}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    command = ["reproduce", str(recipe), "--small", "--arms", "[ours, TopK, ReLU]"]
    for trained in (2, 0):
        assert main(command) == 0
        said = capsys.readouterr()
        assert said.err.count("training in") == trained
        # TopK has nothing to match.
        assert [said.err.count(f"{name}: not measured, ") for name in ("ours", "TopK", "ReLU")] == [1, 1, 0]
        assert said.err.count("; lower ") == 2 and "Traceback" not in said.err
        rows = {row[0]: row[1:] for row in csv.reader((tmp_path / "out" / "table0-small" / "table.csv").open())}
        assert rows["ours"] == rows["TopK"] == ["", ""] and float(rows["ReLU"][0]) > 0
    assert not list((tmp_path / "out" / "saes").glob("topk-*"))
    # Another rate is another training.
    assert main([*command[:-1], "[ours]", "--saes.ours.train.lr", "0.001"]) == 0
    assert capsys.readouterr().err.count("training in") == 1


def test_measures_have_dotted_names():
    groups = {
        "zero_shot": {
            "zero_shot": {
                "no_sae": {"images": 0.7, "classes": 0.6},
                "masked": [
                    {"n": 5, "switch": "on", "mask": "oracle", "concepts": "top", "accuracy": {"images": 0.2}},
                ],
            }
        }
    }
    assert flat(groups) == {
        "zero_shot.zero_shot.no_sae.images": 0.7,
        "zero_shot.zero_shot.no_sae.classes": 0.6,
        "zero_shot.zero_shot.on_5.oracle.top.images": 0.2,
    }


def test_averages_need_all_tables():
    tables = [{"a": [1.0, None], "b": [3.0, 4.0]}, {"b": [4.0, None], "a": [2.0, 1.0]}]
    assert averaged(tables, ["a", "b"]) == {"a": [1.5, None], "b": [3.5, None]}
    assert averaged(tables[:1], ["b"]) == {"b": [3.0, 4.0]}


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": {"FVU": "text/reconstruction.reconstruction.fvu", "L0": "text/reconstruction.reconstruction.l0"}},
        {"columns": {"L0": "text/reconstruction.reconstruction.l0"}, "paper": {}},
        {"arms": ["TopK"]},
        {"average_of": ["table0.yaml"]},
    ],
    ids=["other order", "fewer columns", "fewer arms", "an average itself"],
)
def test_an_average_is_of_recipes_with_the_same_rows_and_columns(recipe, tmp_path, capsys, changes):
    part = yaml.safe_load(recipe.read_text()) | changes
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(part, sort_keys=False))
    for further in ([], ["--check"]):
        command = ["reproduce", str(tmp_path / "figure0.yaml"), "--small", "--average_of", "[table0.yaml, part.yaml]"]
        assert main([*command, *further]) == 2
        assert "average_of must be recipes of the same arms and the same columns" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
