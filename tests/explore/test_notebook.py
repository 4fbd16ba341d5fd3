"""Concepts as tables and steering, as a notebook calls them, with every class of model."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import sae_lens_sparsemax
from sae_lens_sparsemax.data.drawings import CLASSES
from sae_lens_sparsemax.data.quickstart import QUICKSTART
from sae_lens_sparsemax.explore.app.session import open_session
from sae_lens_sparsemax.explore.concepts import concepts_of_image, concepts_of_text
from sae_lens_sparsemax.models.at_hook import open_text
from tests.support.sites import BRIGHT, save_text_sae
from tests.support.small_sae import small_sae

Change, concepts_of, steer = (getattr(sae_lens_sparsemax, name) for name in ("Change", "concepts_of", "steer"))
PROMPT = "The river of stone"


def photo() -> Image.Image:
    """White at the right, black at the left."""
    image = Image.new("L", (64, 64))
    image.paste(255, (32, 0, 64, 64))
    return image


def test_a_text_is_a_table_of_its_concepts_with_labels_and_passes(language_model_and_sae, tmp_path):
    model, sae = language_model_and_sae
    found, table = concepts_of_text(model, sae, PROMPT), concepts_of([PROMPT, "and said"], sae, model)
    mine = table[table["sample"] == 0]
    dense = torch.zeros_like(found.feature_acts)
    dense[mine["position"].tolist(), mine["concept"].tolist()] = torch.tensor(mine["activation"].tolist())
    assert torch.equal(dense, found.feature_acts)
    assert [found.tokens[place] for place in mine["position"]] == mine["token"].tolist()
    assert mine["pass"].isna().all() and set(table["label"]) == {""} and set(table["sample"]) == {0, 1}
    top = concepts_of(PROMPT, sae, model, n=1)
    assert (top.groupby("position")["activation"].max() == mine.groupby("position")["activation"].max()).all()
    assert len(top) == mine["position"].nunique()

    folder = save_text_sae(tmp_path / "sae", tmp_path, passes=2, alpha=3.0)
    proposed = {str(c): {"label": f"proposed {c}", "score": 0.75} for c in range(96)}
    (folder / "explanations.json").write_text(json.dumps({"model": "some model", "concepts": proposed}))
    (folder / "labels.csv").write_text("concept,label\n3,mine\n5,\n")
    table = concepts_of(PROMPT, folder)  # loads the model that the metadata name
    assert set(table["pass"]) == {1, 2}
    assert (table["label"] == table["concept"].map(lambda c: "mine" if c == 3 else f"proposed {c}")).all()


def test_an_image_is_a_table_of_the_concepts_of_its_patches(clip_and_sae):
    model, sae = clip_and_sae
    table = concepts_of(photo(), sae, model)
    bright = table[table["concept"] == BRIGHT].dropna(subset=["row"])
    assert set(bright["column"]) == {2, 3} and set(bright["row"]) == {0, 1, 2, 3} and len(bright) == 8
    assert table[table["position"] == 0]["row"].isna().all()
    assert table["activation"].sum() == pytest.approx(concepts_of_image(model, sae, photo()).feature_acts.sum().item())


@pytest.mark.parametrize(
    ("class_name", "name", "hook"),
    [
        ("TransformerBridge", None, "blocks.1.hook_out"),
        pytest.param("AutoModelForCausalLM", None, "model.layers.1", marks=pytest.mark.slow),
        pytest.param("HookedTransformer", "tiny", "blocks.1.hook_resid_post", marks=pytest.mark.slow),
    ],
)
def test_a_text_goes_on_otherwise_with_a_change(class_name, name, hook, tiny_model_folder, hooked_transformer):
    sae = small_sae(d_in=16, d_sae=32)
    for key, value in {
        "model_name": name or str(tiny_model_folder), "model_class_name": class_name, "hook_name": hook,
    }.items():  # fmt: skip
        sae.cfg.metadata[key] = value
    at_hook = open_text(sae)
    prompt = at_hook.model.tokenizer.decode([5, 9, 12])
    plain = steer(prompt, sae, {3: Change()}, at_hook.model, max_new_tokens=6, temperature=1.0, seed=1)
    assert plain.before == plain.after and plain.before
    drawn = [
        steer(prompt, sae, {3: 300.0}, at_hook.model, max_new_tokens=6, temperature=1.0, seed=s) for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] and drawn[0].before == plain.before != drawn[2].before

    # By hand, at the likeliest tokens: the row of the decoder is added at every position.
    def add(activations, hook):
        return activations + 300 * sae.W_dec[3]

    tokens = at_hook.tokens(prompt)[None]
    for _ in range(5):
        logits = at_hook.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(at_hook.hook_name, add)])
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], 1)
    added = at_hook.token_texts(tokens[0, -5:].tolist())
    likeliest = steer(prompt, sae, {3: 300.0}, at_hook.model, max_new_tokens=5)
    assert likeliest.after == "".join(added) != likeliest.before
    for cold in (1e-6, 1e-39, 1e-300, 5e-324):
        assert steer(prompt, sae, {3: 300.0}, at_hook.model, max_new_tokens=5, temperature=cold) == likeliest
    assert steer(prompt, sae, {3: 300.0}, at_hook.model, max_new_tokens=5, temperature=1e300).after
    found = [
        steer(prompt, sae, {3: 300.0}, at_hook.model, max_new_tokens=5, temperature=t) for t in (1.5, np.float32(1.5))
    ]
    assert found[0] == found[1]
    if class_name == "TransformerBridge":  # after an SAE, its hooks no longer fire
        at_hook.model.add_sae(sae)
        at_hook.model.reset_saes()
        with pytest.raises(ValueError, match="load it anew"):
            steer(prompt, sae, {1: 1.0}, at_hook.model)


def test_a_change_that_the_model_would_not_see_and_wrong_input_are_refused(language_model_and_sae, clip_and_sae):
    model, sae = language_model_and_sae
    for message, given, arguments in (
        ("concept must be between 0 and 95, got 96", PROMPT, {"changes": {96: 1.0}}),
        ("max_new_tokens must be at least 1, got 0", PROMPT, {"max_new_tokens": 0}),
        ("max_new_tokens must be at most", PROMPT, {"max_new_tokens": 10**6}),
        ("temperature must be 0 or a positive", PROMPT, {"temperature": -1}),
        ("temperature must be 0 or a positive", PROMPT, {"temperature": "hot"}),
        ("temperature must be 0 or a positive", PROMPT, {"temperature": 10**400}),
        ("max_new_tokens must be a whole number, got 2.5", PROMPT, {"max_new_tokens": 2.5}),
        ("seed must be between 0 and", PROMPT, {"seed": 2**70}),
        ("changes must be a mapping", PROMPT, {"changes": [5]}),
        ("a concept in changes must be a whole number, got 1.7", PROMPT, {"changes": {1.7: 1.0}}),
        ("the change of concept 5 must be a number or a Change", PROMPT, {"changes": {5: "x"}}),
        ("the change of concept 5 must be a number or a Change", PROMPT, {"changes": {5: Change("x")}}),
        ("classes must be left out", PROMPT, {"classes": ["cat"]}),
        ("given must be a text", photo(), {}),
        ("prompt must be a text that is not empty", " ", {}),
        ("not finite", PROMPT, {"changes": {1: 1e39}}),
        ("the text must be of whole characters", "caf\udce9", {}),
    ):
        with pytest.raises(ValueError, match=message):
            steer(given, sae, **({"changes": {1: 1.0}, "model": model} | arguments))
    for given, message in (
        ("a text", "given must be an image .* or the path of one, .*: .*No such file"),
        (torch.zeros(3), "given must be an image .*, got 'Tensor'"),
        (Image.new("RGB", (5000, 10)), "too narrow"),
    ):
        with pytest.raises(ValueError, match=message):
            concepts_of(given, clip_and_sae[1], clip_and_sae[0])
    with pytest.raises(ValueError, match="labels must be a mapping from concepts"):
        concepts_of(PROMPT, sae, model, labels=["river"])
    with pytest.raises(ValueError, match="the text must be of whole characters"):
        concepts_of("caf\udce9", sae, model)
    with pytest.raises(ValueError, match="n must be a whole number, got 1.5"):
        concepts_of(PROMPT, sae, model, n=1.5)
    with pytest.raises(ValueError, match="model must be a CLIP or SigLIP model"):
        steer(photo(), clip_and_sae[1], {BRIGHT: Change(0)}, clip_and_sae[0])
    with pytest.raises(ValueError, match="model must be a model with hooks"):
        concepts_of(PROMPT, sae, "gpt2")


def test_an_image_has_the_probabilities_of_its_classes_without_and_with_a_change(tmp_path):
    sae = small_sae(d_in=96, d_sae=16)
    for key, value in {
        "model_name": QUICKSTART, "model_class_name": "HookedViT", "hook_name": "blocks.1.hook_resid_post",
    }.items():  # fmt: skip
        sae.cfg.metadata[key] = value
    strongest = int(concepts_of(photo(), sae)["concept"].iloc[0])
    scores, heat = steer(photo(), sae, {strongest: 500.0}, classes=["red", "blue", "green"])
    assert set(scores["label"]) == {"red", "blue", "green"} and heat[strongest].shape == (64, 64)
    assert scores[["before", "after"]].sum().tolist() == pytest.approx([1, 1])
    assert (scores["before"] - scores["after"]).abs().max() > 1e-3
    sae.save_model(tmp_path)
    app = open_session(str(tmp_path))
    given = app.opening["examples"][0]["given"]
    shown = {each["label"]: each["before"] for each in app.inspect(given, None, {})["outcomes"]}
    offered = steer(io.BytesIO(base64.b64decode(given)), tmp_path, {strongest: 1.0}).scores.set_index("label")["before"]
    assert set(offered.index) == set(CLASSES) and offered.index[0] == "red moon"
    assert offered[[*shown]].tolist() == pytest.approx([*shown.values()], rel=1e-4)
    twice = steer(photo(), sae, {strongest: 500.0}, classes=["red", "red ", "blue", "green"])[0]
    pd.testing.assert_frame_equal(twice, scores)
    for classes, message in (
        (["red", "zebra"], "classes must be words that the model's tokenizer knows, got 'zebra'"),
        ("red", "classes must be a list of names, got 'red'"),
        (5, "classes must be a list of names, got 5"),
        ([], "classes must be at least one name"),
    ):
        with pytest.raises(ValueError, match=message):
            steer(photo(), sae, {strongest: 1.0}, classes=classes)
    pd.testing.assert_series_equal(scores["before"], scores["before"].sort_values(ascending=False, ignore_index=True))
