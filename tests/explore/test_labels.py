"""A person's labels, as people write such tables."""

import shutil

import pytest

from sae_lens_sparsemax.explore.explain import ExplainSettings, explain
from sae_lens_sparsemax.explore.explainers import Server
from sae_lens_sparsemax.explore.export import export
from sae_lens_sparsemax.explore.labels import Label, labels_of
from sae_lens_sparsemax.explore.run import explore


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
