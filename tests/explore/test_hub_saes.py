"""An SAE on the hub is explored, explained, exported and opened as one in a folder is."""

import pandas as pd
import pytest
from huggingface_hub import constants

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.explore.app.opening import open_pages
from sae_lens_sparsemax.explore.explain import ExplainSettings, explain
from sae_lens_sparsemax.explore.labels import labels_of
from sae_lens_sparsemax.hub import upload_saes
from sae_lens_sparsemax.models.saved_saes import load_sae


class Answers:
    """A language model that has one label for everything."""

    name = "answers"

    def answer(self, question, max_new_tokens):
        return "rivers"

    def says_yes(self, question):
        return True


@pytest.mark.slow
def test_an_sae_on_the_hub_is_explored_exported_and_opened_in_a_place_of_its_own(
    hub, text_world, tmp_path, monkeypatch, capsys, caplog
):
    upload_saes({"layers/2": text_world / "sae"}, "user/saes")
    monkeypatch.chdir(tmp_path)
    source, place = "user/saes:layers/2", tmp_path / "output" / "user" / "saes" / "layers" / "2"
    assert main(["explore", source, "--samples", "8"]) == 0
    said = capsys.readouterr().out
    assert f"app {source}\n" in said and (place / "explore" / "index.html").is_file()
    assert main(["export", source]) == 0 and len(pd.read_csv(place / "concepts.csv")) == 96
    assert open_pages(source, load_sae(source), None) is not None
    assert explain(source, ExplainSettings(n_concepts=1), model=Answers())
    assert [label.by for label in labels_of(source).values()] == ["answers"]
    assert not caplog.text
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    assert labels_of(source) and caplog.text.count("Labels of user/saes:layers/2 are not shown, as the hub") == 1
