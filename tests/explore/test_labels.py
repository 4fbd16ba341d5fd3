"""A person's labels, as people write such tables."""

import json
import shutil

import pandas as pd
import pytest

from sae_lens_sparsemax.explore.explain import ExplainSettings, explain
from sae_lens_sparsemax.explore.explainers import Server
from sae_lens_sparsemax.explore.explored import Explored
from sae_lens_sparsemax.explore.export import ExportSettings, export
from sae_lens_sparsemax.explore.labels import Label, labels_of, show_labels
from sae_lens_sparsemax.explore.pages.scripts import write_script
from sae_lens_sparsemax.explore.run import explore
from sae_lens_sparsemax.explore.settings import ExploreSettings


def test_own_labels_may_be_quoted_blank_and_spaced_and_come_from_a_spreadsheet(tmp_path):
    (tmp_path / "labels.csv").write_text('\ufeffconcept,label\r\n3,"cats, and dogs"\r\n 4 , birds \r\n5,\r\n', "utf-8")
    assert labels_of(tmp_path) == {3: Label("cats, and dogs", "person"), 4: Label("birds", "person")}


@pytest.mark.parametrize("row", ["3 cats", "3", "cats,3", "-3,cats", "3.0,cats", "3,cats, and dogs", ",cats"])
def test_a_row_that_is_none_is_refused_with_its_line(tmp_path, row):
    (tmp_path / "labels.csv").write_text(f"concept,label\n1,mine\n{row}\n")
    with pytest.raises(ValueError, match=r"labels.csv.* its line 3 must be a concept's number, a comma and its label"):
        labels_of(tmp_path)


def test_damaged_labels_are_refused_before_examples_or_proposals_are_made(
    text_world, text_pages, tmp_path, monkeypatch
):
    sae, made = tmp_path / "sae", []
    shutil.copytree(text_world / "sae", sae)
    (sae / "labels.csv").write_text("concept,label\n3 mine\n")
    monkeypatch.setattr("sae_lens_sparsemax.explore.run._report", lambda *_: made.append("examples"))
    monkeypatch.setattr("sae_lens_sparsemax.explore.explain._proposal", lambda *_: made.append("a proposal"))
    for run in (lambda: explore([str(sae)], tmp_path / "pages"), lambda: export(sae)):
        with pytest.raises(ValueError, match="its line 2 must be a concept's number"):
            run()
    shutil.copytree(text_pages, sae / "explore")
    with pytest.raises(ValueError, match="its line 2 must be a concept's number"):
        explain(sae, ExplainSettings(), model=Server("http://localhost/v1", "stub"))
    assert not made and not (tmp_path / "pages").exists()


@pytest.fixture(scope="module")
def pages_elsewhere(text_world, tmp_path_factory):
    """Pages of two SAEs, labelled by a person and a language model, which lie with neither."""
    folder, saes = tmp_path_factory.mktemp("elsewhere"), []
    for name in ("one", "two"):
        saes.append(str(folder / "saes" / name))
        shutil.copytree(text_world / "sae", saes[-1])
        (folder / "saes" / name / "labels.csv").write_text(f"concept,label\n3,mine of {name}\n")
        proposed = {"4": {"label": f"proposed of {name}", "score": 0.75}}
        (folder / "saes" / name / "explanations.json").write_text(
            json.dumps({"model": "some model", "concepts": proposed})
        )
    few = ExploreSettings(samples=8, batch_size=8, showcase=1, examples=2, drawn_examples=0)
    pages = explore(saes, folder / "pages" / "both", few, progress=False).parent
    shutil.rmtree(folder / "saes")
    return pages


@pytest.mark.parametrize(("number", "name"), [(0, "one"), (1, "two")])
def test_an_export_has_the_labels_that_pages_show_wherever_they_lie(pages_elsewhere, tmp_path, number, name):
    table = pd.read_csv(export(pages_elsewhere, tmp_path / "table.csv", ExportSettings(number=number)))
    assert table["label"][[3, 4]].tolist() == [f"mine of {name}", f"proposed of {name}"]
    assert table["label_by"][[3, 4, 5]].tolist() == ["person", "some model", "explore"]
    assert table["label_score"][4] == 0.75 and table["label_score"].isna().sum() == 95
    shown = Explored(pages_elsewhere, number).table["label"]
    assert shown[3:6] == [f"mine of {name}", f"proposed of {name} (proposed, 75% right)", table["label"][5]]


def test_labels_at_hand_stand_before_those_in_pages_and_showing_them_again_loses_none(pages_elsewhere, tmp_path):
    folder = tmp_path / "pages"
    shutil.copytree(pages_elsewhere, folder)
    (tmp_path / "explanations.json").write_text(
        json.dumps({"model": "another", "concepts": {"5": {"label": "new", "score": 0.9}}})
    )
    for _ in range(2):
        labels = labels_of(folder, Explored(folder))
        assert {c: label for c, label in labels.items() if label.by != "explore"} == {
            3: Label("mine of one", "person"), 5: Label("new", "another", 0.9),
        }  # fmt: skip
        show_labels(Explored(folder), folder)
    (tmp_path / "labels.csv").write_text("concept,label\n6,later\n")
    assert {c for c, label in labels_of(folder, Explored(folder)).items() if label.by == "person"} == {6}


def test_pages_of_earlier_versions_which_do_not_tell_who_said_what_are_exported(pages_elsewhere, tmp_path):
    folder = tmp_path / "pages"
    shutil.copytree(pages_elsewhere, folder)
    table = Explored(folder).table
    del table["said"]
    write_script(folder, "0/table", table)
    table = pd.read_csv(export(folder, tmp_path / "table.csv"))
    assert set(table["label_by"].dropna()) == {"explore"} and len(table) == 96
