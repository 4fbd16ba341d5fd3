"""What the app opens with: pages that are of this SAE, examples, classes that the model knows."""

import json
import shutil

import pytest
import torch

from sae_lens_sparsemax.explore.app.opening import offered_classes, open_pages, opening_images
from sae_lens_sparsemax.explore.app.session import open_session
from sae_lens_sparsemax.explore.explored import Explored, find_explored
from sae_lens_sparsemax.explore.labels import shown_labels
from sae_lens_sparsemax.explore.notebook import concepts_of, steer
from sae_lens_sparsemax.explore.run import explore
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.models.saved_saes import load_sae
from tests.support.sites import HOSTILE_CLASS


def test_pages_of_unit_norm_decoders_are_told_apart(text_world, text_pages, tmp_path):
    saes = {}
    for name, seed in (("one", 0), ("other", 1)):
        sae = load_sae(str(text_world / "sae"))
        sae.W_dec.data = torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(seed))
        sae.W_dec.data /= sae.W_dec.data.norm(dim=-1, keepdim=True)
        sae.save_model(tmp_path / name)
        saes[name] = load_sae(str(tmp_path / name))
    settings = ExploreSettings(samples=4, showcase=1, examples=2, batch_size=4)
    pages = explore([str(tmp_path / "one")], tmp_path / "pages", settings, progress=False).parent
    found = open_pages(str(tmp_path / "one"), saes["one"], str(pages))
    assert found is not None and found.table["norm"][0] == 1
    with pytest.raises(ValueError, match="of this SAE"):
        open_pages(str(tmp_path / "other"), saes["other"], str(pages))


def test_outliers_that_explore_found_are_left_out_by_app_and_table(text_world, text_pages, tmp_path, monkeypatch):
    folder = tmp_path / "sae"
    shutil.copytree(text_world / "sae", folder)
    shutil.copytree(text_pages, folder / "explore")
    pages = find_explored(folder)
    norms = concepts_of("the river of stone", folder).groupby("position")["activation"].max()
    assert pages is not None and len(norms) > 1
    steered = steer("the river of stone", folder, {3: 300.0}, max_new_tokens=3)
    assert steered.before != steered.after
    # Pages are read anew each time; here they say that nearly everything is an outlier.
    monkeypatch.setattr(Explored, "__init__", _with_limit(Explored.__init__, 1e-3))
    assert concepts_of("the river of stone", folder).empty
    steered = steer("the river of stone", folder, {3: 300.0}, max_new_tokens=3)
    assert steered.before == steered.after
    session = open_session(str(folder))
    assert "a norm above" in str(session.inspect("the river of stone", None, {}))


def _with_limit(init, limit):
    def changed(self, *arguments):
        init(self, *arguments)
        self.summary = self.summary | {"max_norm": limit}

    return changed


def test_classes_that_a_model_does_not_know_are_not_offered(image_world, image_pages):
    class Tokenizer:
        unk_token_id = 0

        def __init__(self, known):
            self.known = known

        def __call__(self, words, add_special_tokens):
            return {"input_ids": [[1] if word in self.known else [0] for word in words]}

    sae = load_sae(str(image_world / "other"))
    pages = open_pages(str(image_world / "other"), sae, str(image_pages))
    assert offered_classes(Tokenizer(["wide", HOSTILE_CLASS]), sae, pages) == ["wide", HOSTILE_CLASS]
    # One class would have 100 per cent of everything.
    assert offered_classes(Tokenizer(["wide"]), sae, pages) == offered_classes(Tokenizer([]), sae, pages) == []


def test_without_kept_examples_there_are_others_to_begin_with(image_world, image_pages):
    sae = load_sae(str(image_world / "other"))
    pages = open_pages(str(image_world / "other"), sae, str(image_pages))
    assert pages is not None and "copy of" in opening_images(sae, pages)[0].name
    pages.site["showcase"] = []
    assert len(opening_images(sae, pages)) == 3


def test_a_proposal_no_better_than_chance_does_not_hide_a_guess(text_world, text_pages, tmp_path):
    (tmp_path / "explanations.json").write_text(
        json.dumps({"model": "m", "concepts": {str(c): {"label": "p", "score": s} for c, s in ((3, 0.5), (4, 0.6))}})
    )
    pages = find_explored(text_pages)
    assert pages is not None
    shown = shown_labels(tmp_path, pages)
    assert shown[3] == pages.labels()[3] and shown[4] == "p (proposed, 60% right)"
