"""What other programs read: a table, SAEDashboard's batches, and the folder that Neuronpedia imports."""

import gzip
import json
import shutil

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.explore.explored import Explored, find_explored
from sae_lens_sparsemax.explore.export import ExportSettings, export
from sae_lens_sparsemax.explore.labels import labels_of
from sae_lens_sparsemax.explore.notebook import concepts_of
from tests.explore.test_explore_images import read

# Names and types that the classes of SAEDashboard 0.8 take: batch, feature and activation.
BATCH = {"model_id": str, "layer": int, "sae_set": str, "sae_id_suffix": type(None), "features": list}
FLOATS = (
    "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_l1", "correlated_neurons_pearson",
    "correlated_features_l1", "correlated_features_pearson", "neg_values", "pos_values", "freq_hist_data_bar_values",
    "freq_hist_data_bar_heights", "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist",
)  # fmt: skip
LISTS = (
    *FLOATS, "neuron_alignment_indices", "correlated_neurons_indices", "correlated_features_indices", "neg_str",
    "pos_str", "activations", "vector",
)  # fmt: skip
FEATURE = dict.fromkeys(LISTS, list) | {
    "feature_index": int, "frac_nonzero": float, "n_prompts_total": int, "n_tokens_in_prompt": int, "dataset": str,
}  # fmt: skip
ACTIVATION = {
    "bin_min": int, "bin_max": float, "bin_contains": int, "tokens": list, "values": list,
    "qualifying_token_index": int,
}  # fmt: skip
# What Neuronpedia's rows of a feature and of an activation must have.
NEURON = {"modelId", "layer", "index", "creatorId", "maxActApprox", "hasVector", "hookName", "topkCosSimIndices"}
ROW = {
    "id", "tokens", "index", "layer", "modelId", "maxValue", "maxValueTokenIndex", "minValue", "values", "creatorId",
    "dfaValues", "lossValues", "binMin", "binMax", "binContains", "qualifyingTokenIndex", "createdAt",
}  # fmt: skip


def lines(path):
    packed = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(packed) if path.suffix == ".gz" else packed).splitlines()]


@pytest.fixture(scope="module")
def sae_with_pages(text_world, text_pages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "sae"
    shutil.copytree(text_world / "sae", folder)
    shutil.copytree(text_pages, folder / "explore")
    (folder / "labels.csv").write_text("concept,label\n3,=mine\n")
    proposed = {"4": {"label": "proposed", "score": 0.75}}
    (folder / "explanations.json").write_text(json.dumps({"model": "some model", "concepts": proposed}))
    return folder


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_table_has_a_row_for_each_concept(sae_with_pages, tmp_path, format, capsys):
    path = tmp_path / f"table.{format}"
    assert main(["export", str(sae_with_pages), "--format", format, "--output_path", str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    table = pd.read_csv(path) if format == "csv" else pd.read_parquet(path)
    assert table["concept"].tolist() == list(range(96))
    # A spreadsheet would run it.
    assert table["label"][3] == ("'=mine" if format == "csv" else "=mine")
    assert table["label_by"][[3, 4, 5]].tolist() == ["person", "some model", "explore"]
    assert table["label_score"][4] == 0.75 and table["label_score"].isna().sum() == 95
    pages = read(sae_with_pages / "explore", "0/table")
    assert table["n_active"].tolist() == pages["active"] and table["nearest"][7] == pages["near"][7][0]
    example = find_explored(sae_with_pages).examples(7)[0]
    tokens = find_explored(sae_with_pages).tokens(example.sample)
    assert f"«{tokens[example.acts.index(max(example.acts))]}»" in table["example_1"][7]


def test_batches_are_those_of_saedashboard(sae_with_pages):
    folder = export(sae_with_pages, settings=ExportSettings(format="saedashboard", source_set="res"))
    (path,) = folder.iterdir()
    batch = json.loads(path.read_text())
    assert path.name == "batch-0.json" and {k: type(v) for k, v in batch.items()} == BATCH
    assert batch["layer"] == 2 and batch["sae_set"] == "res" and len(batch["features"]) == 96
    for feature in batch["features"]:
        assert {k: type(v) for k, v in feature.items()} == FEATURE
        assert all(isinstance(x, int | float) for name in FLOATS for x in feature[name])
        for activation in feature["activations"]:
            assert {k: type(v) if k != "bin_max" else float for k, v in activation.items()} == ACTIVATION
            assert len(activation["tokens"]) == len(activation["values"]) == feature["n_tokens_in_prompt"]
    with pytest.raises(ValueError, match="output_path must be a new or empty folder"):
        export(sae_with_pages, settings=ExportSettings(format="saedashboard"))


def test_neuronpedia_gets_its_folder(sae_with_pages, tmp_path):
    settings = ExportSettings(format="neuronpedia", model_id="gpt2-small", creator_name="someone")
    place = export(sae_with_pages / "explore", tmp_path / "np", settings) / "gpt2-small" / "2-sparsemax"
    features, activations = (lines(place / kind / "batch-0.jsonl.gz") for kind in ("features", "activations"))
    assert [row["index"] for row in features] == [str(c) for c in range(96)] and features[0].keys() >= NEURON
    assert activations[0].keys() == ROW and len({row["id"] for row in activations}) == len(activations)
    for row in activations:
        assert (
            row["values"][row["maxValueTokenIndex"]] == row["maxValue"] == max(row["values"]) and len(row["id"]) == 25
        )
    said = {row["index"]: row["description"] for row in lines(place / "explanations" / "batch-0.jsonl.gz")}
    assert said == {"3": "=mine", "4": "proposed"}
    (source,), (kind,) = lines(place / "source.jsonl"), lines(place / "sourceset.jsonl")
    assert (source["id"], source["setName"], kind["name"]) == ("2-sparsemax", "sparsemax", "sparsemax")
    assert lines(place / "model.jsonl")[0]["id"] == "gpt2-small" and lines(place / "release.jsonl")


def test_activations_below_zero_are_exported_by_their_size(signed_pages, tmp_path):
    folder = export(signed_pages, tmp_path / "neuronpedia", ExportSettings(format="neuronpedia"))
    (features,), (activations,) = (folder.rglob(f"{kind}/batch-0.jsonl.gz") for kind in ("features", "activations"))
    highest = {row["index"]: row["maxActApprox"] for row in lines(features)}
    rows = lines(activations)
    assert any(row["maxValue"] < 0 for row in rows)
    for row in rows:
        assert abs(row["maxValue"]) == max(map(abs, row["values"])) <= abs(highest[row["index"]]) + 1e-3
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]


def test_pages_of_another_sae_are_refused_and_its_labels_not_shown(sae_with_pages, tmp_path, capsys, caplog):
    again = tmp_path / "sae"
    shutil.copytree(sae_with_pages, again)
    weights = load_file(again / "sae_weights.safetensors")
    save_file({name: value * 2 for name, value in weights.items()}, again / "sae_weights.safetensors")
    (again / "checksums.json").unlink(missing_ok=True)
    for command in (["export"], ["explain", "--explainer", "x"]):
        assert main([command[0], str(again), *command[1:]]) == 2
        assert "are of another SAE" in capsys.readouterr().err
    assert set(concepts_of("river", again)["label"]) <= {"=mine", "proposed", ""}  # no guesses of the other
    pages = find_explored(sae_with_pages)
    proposals = json.loads((again / "explanations.json").read_text())
    probe = pages.summary["probe"]
    for told, shown in ((None, True), ([x + 1e-3 for x in probe], True), ([x + 1e-2 for x in probe], False)):
        (again / "explanations.json").write_text(json.dumps(proposals | {"probe": told}))
        assert (4 in {c for c, label in labels_of(again, pages).items() if label.by == "some model"}) is shown
    assert "proposed for another SAE" in caplog.text


def test_what_cannot_be_exported_is_said_in_a_sentence(image_pages, tmp_path, capsys):
    table = pd.read_csv(export(image_pages, tmp_path / "images.csv", ExportSettings(number=1)))
    assert table["example_1"][0] == f"images/{Explored(image_pages, 1).examples(0)[0].sample}.jpg"
    for words, message in (
        (["--format", "neuronpedia"], "format must be csv or parquet for an SAE on images"),
        (["--format", "xml"], "format must be one of csv, parquet"),
        (["--number", "2"], "number must be below 2"),
        (["--output_path", str(tmp_path)], "output_path must be a file"),
    ):
        assert main(["export", str(image_pages), "--output_path", str(tmp_path / "x"), *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", str(tmp_path / "gone")]) == 2
    assert "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sae", "settings", "message"),
    [
        ("image", {"format": "neuronpedia"}, "format must be csv or parquet for an SAE on images"),
        ("text", {"number": 1}, "number must be 0"),
        ("nowhere", {"format": "saedashboard"}, "layer must be given"),
    ],
)
def test_an_sae_is_not_explored_for_what_cannot_be_exported(
    image_world, text_world, tmp_path, monkeypatch, sae, settings, message
):
    folder = shutil.copytree(image_world / "sae" if sae == "image" else text_world / "sae", tmp_path / "sae")
    if sae == "nowhere":
        values = json.loads((folder / "cfg.json").read_text())
        values["metadata"]["hook_name"] = "embed.hook_out"
        (folder / "cfg.json").write_text(json.dumps(values))
        (folder / "checksums.json").unlink(missing_ok=True)
    monkeypatch.setattr("sae_lens_sparsemax.explore.export.explore", lambda *_: pytest.fail("it was explored"))
    with pytest.raises(ValueError, match=message):
        export(folder, settings=ExportSettings(**settings))
