import base64
import copy
import io

import pytest
import torch
from PIL import Image

from sae_lens_sparsemax.data.drawings import CLASSES
from sae_lens_sparsemax.data.image_loader import decode_image
from sae_lens_sparsemax.data.quickstart import QUICKSTART
from sae_lens_sparsemax.explore.app.answers import first_passes_at as first_of
from sae_lens_sparsemax.explore.app.opening import known_classes, open_pages, opening_images
from sae_lens_sparsemax.explore.app.session import ImageSession, TextSession, open_session
from sae_lens_sparsemax.explore.concepts import concepts_of_image, concepts_of_text
from sae_lens_sparsemax.explore.labels import shown_labels
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.models.splice import Change
from tests.support.sites import BRIGHT, DEAD, HOSTILE_CLASS, save_text_sae
from tests.support.small_sae import small_sae


def encoded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def photo() -> Image.Image:
    """White at the right, black at the left, twice as wide as high."""
    image = Image.new("L", (128, 64))
    image.paste(255, (64, 0, 128, 64))
    return image


@pytest.fixture
def image_session(clip_and_sae):
    session = ImageSession(*clip_and_sae)
    # The random model has no tokenizer; any embeddings make outcomes.
    session.words = ["cat", "dog", "bird"]
    session.word_embeds = torch.nn.functional.normalize(torch.randn(3, 24), dim=-1)
    return session


def test_a_patch_has_the_concepts_of_its_place(image_session):
    answer = image_session.inspect(encoded(photo()), 3, {})
    assert answer["box"] == (32, 0, 96, 64) and answer["grid"] == (4, 4) and answer["size"] == (128, 64)
    bright = next(c for c in answer["concepts"] if c["concept"] == BRIGHT)
    assert [act > 0 for act in bright["places"]] == [False, False, True, True] * 4
    dark = image_session.inspect(encoded(photo()), 0, {})
    assert BRIGHT not in [concept for concept, _ in dark["spikes"]] and dark["n_active"] == len(dark["spikes"])


def test_switching_off_changes_the_classes_and_a_dead_concept_does_not(image_session):
    given = encoded(photo())
    plain = image_session.inspect(given, None, {})["outcomes"]
    assert [o["before"] for o in plain] == [o["after"] for o in plain]
    assert sum(o["before"] for o in plain) == pytest.approx(1)
    off = image_session.inspect(given, None, {BRIGHT: Change(0.0)})["outcomes"]
    assert [o["before"] for o in off] == [o["before"] for o in plain]
    assert max(abs(o["after"] - o["before"]) for o in off) > 1e-4
    dead = image_session.inspect(given, None, {DEAD: Change(5.0)})
    assert [o["after"] for o in dead["outcomes"]] == pytest.approx([o["before"] for o in plain], abs=1e-5)
    assert DEAD in [c["concept"] for c in dead["concepts"]]  # changed, so shown


def test_next_tokens_change_with_a_concept(language_model_and_sae):
    session = TextSession(*language_model_and_sae, labels={c: f"label {c}" for c in range(96)})
    plain = session.inspect("The river of stone", None, {})
    assert all(each["label"] == f"label {each['concept']}" for each in plain["concepts"])
    assert all(len(session.at_hook.tokens(each["given"])) <= 128 for each in session.opening["examples"])
    with pytest.raises(ValueError, match="classes must be left out"):
        session.inspect("The river", None, {}, ["a"])
    assert plain["position"] == len(plain["tokens"]) - 1 and len(plain["outcomes"]) == 8
    model, _ = language_model_and_sae
    logits = model(model.to_tokens("The river of stone"), return_type="logits")[0, -1]
    assert plain["outcomes"][0]["before"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-5)
    top = plain["concepts"][0]["concept"]
    changed = session.inspect("The river of stone", None, {top: Change(0.0)})["outcomes"]
    assert any(abs(o["after"] - o["before"]) > 1e-5 for o in changed)
    earlier = session.inspect("The river of stone", 1, {})
    assert earlier["tokens"] == plain["tokens"] and earlier["outcomes"] != plain["outcomes"]


def test_each_concept_has_the_pass_that_first_selected_it(language_model_and_sae, clip_and_sae, tmp_path):
    (model, one_pass), (vit, seen) = language_model_and_sae, clip_and_sae
    assert {c["pass"] for c in TextSession(model, one_pass).inspect("The river", 1, {})["concepts"]} == {None}
    sae = load_sae(str(save_text_sae(tmp_path / "text", tmp_path, passes=2, alpha=3.0)))
    answer = TextSession(model, sae).inspect("The river of stone", 2, {})
    first = concepts_of_text(model, sae, "The river of stone").first_passes.to_dense()
    assert [c["pass"] for c in answer["concepts"]] == [first[2, c["concept"]] for c in answer["concepts"]]
    assert set(first[2].tolist()) == {0, 1, 2}
    (idle,) = (first[2] == 0).nonzero()[0].tolist()
    changed = TextSession(model, sae).inspect("The river of stone", 2, {idle: Change(1.0)})["concepts"]
    assert changed[-1]["concept"] == idle and changed[-1]["pass"] is None
    small = small_sae(d_in=32, passes=2, alpha=3.0)
    small.cfg.metadata = copy.deepcopy(seen.cfg.metadata)
    small.save_inference_model(tmp_path / "image")
    sae = load_sae(str(tmp_path / "image"))
    first = concepts_of_image(vit, sae, photo()).first_passes.to_dense()
    for position, token in ((None, 0), (3, 4)):
        concepts = ImageSession(vit, sae).inspect(encoded(photo()), position, {})["concepts"]
        assert [c["pass"] for c in concepts] == [first[token, c["concept"]] for c in concepts]
    assert first_of(torch.tensor([[0, 2, 1, 0], [1, 1, 2, 0]]).to_sparse(), None) == {0: 1, 1: 1, 2: 1}


def test_a_token_without_concepts_says_why(language_model_and_sae, monkeypatch):
    model, sae = language_model_and_sae
    monkeypatch.setattr(sae.cfg.metadata, "seqpos_slice", (0, 3))
    plain = TextSession(model, sae).inspect("The river of stone", 0, {})
    assert plain["left_out"][:3] == ["special tokens", None, None] and plain["n_active"] == 0
    assert set(plain["left_out"][3:]) == {"positions outside seqpos_slice (0, 3)"}
    session = TextSession(model, sae)
    monkeypatch.setattr(sae.cfg.metadata, "max_norm", 1e-6)
    assert session.inspect("The river", 1, {})["left_out"][1] == "activations of a norm above 1e-06"


def test_what_is_no_input_is_refused(image_session, language_model_and_sae):
    for given in ("%%%", base64.b64encode(b"not an image").decode(), encoded(photo())[:100]):
        with pytest.raises(ValueError, match="cannot be taken for an image"):
            image_session.inspect(given, None, {})
    with pytest.raises(ValueError, match="too narrow"):
        image_session.inspect(encoded(Image.new("L", (500, 2))), None, {})
    with pytest.raises(ValueError, match="no patch 16; this image has 16"):
        image_session.inspect(encoded(photo()), 16, {})
    with pytest.raises(ValueError, match="concept must be between 0 and 7, got 8"):
        image_session.inspect(encoded(photo()), None, {8: Change(0.0)})
    text = TextSession(*language_model_and_sae)
    with pytest.raises(ValueError, match="empty"):
        text.inspect(" ", None, {})
    with pytest.raises(ValueError, match="no token 99"):
        text.inspect("The river", 99, {})


def test_the_quickstart_clip_opens_with_a_drawing_and_the_classes_that_it_knows(tmp_path):
    sae = small_sae(d_in=96, d_sae=32)
    sae.cfg.metadata.model_name, sae.cfg.metadata.model_class_name = QUICKSTART, "HookedViT"
    sae.cfg.metadata.hook_name, sae.cfg.metadata.tokens = "blocks.2.hook_resid_post", "all"
    sae.save_model(tmp_path / "sae")
    session = open_session(str(tmp_path / "sae"))
    opening = session.opening
    assert opening["classes"] == CLASSES and opening["n_classes"] == 64 and not opening["steers"]
    given = opening["examples"][0]["given"]
    answer = session.inspect(given, None, {})
    assert answer["outcomes"][0]["label"] == "red moon" and answer["outcomes"][0]["before"] > 0.9
    assert {concept for concept, _ in answer["spikes"]} <= {concept for concept, _ in answer["peaks"]}
    mine = session.inspect(given, None, {}, [" red moon", "blue heart", "", "red moon"])["outcomes"]
    assert [each["label"] for each in mine] == ["red moon", "blue heart"]
    for wrong in ([], ["red moon", "qwerty"], ["red " * 50], [f"red {n}" for n in range(201)]):
        with pytest.raises(ValueError, match="class.* must be"):
            session.inspect(given, None, {}, wrong)
    with pytest.raises(ValueError, match="goes on with no text"):
        session.steer("a", {})


def test_pages_are_those_of_the_sae(text_world, text_pages, image_world, image_pages, tmp_path):
    source = str(text_world / "sae")
    pages = open_pages(source, load_sae(source), str(text_pages))
    assert pages is not None and pages.number == 0
    (text_world / "sae" / "labels.csv").write_text("concept,label\n3,mine\n")
    try:
        assert shown_labels(source, pages) == {**pages.labels(), 3: "mine"}
    finally:
        (text_world / "sae" / "labels.csv").unlink()
    assert open_pages(source, load_sae(source), None) is None
    other = load_sae(str(image_world / "other"))
    found = open_pages(str(image_world / "other"), other, str(image_pages))
    assert found is not None and found.number == 1
    assert known_classes(other, found) == known_classes(other, None) == ["wide", HOSTILE_CLASS]
    assert all(
        decode_image({"bytes": base64.b64decode(each.given), "path": None}) for each in opening_images(other, found)
    )
    assert len(opening_images(other, None)) == 3
    for folder in (str(text_pages), str(tmp_path)):
        with pytest.raises(ValueError, match="pages must be a folder that explore wrote"):
            open_pages(str(image_world / "other"), other, folder)
