from pathlib import Path

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from sae_lens_sparsemax.data.quickstart import quickstart_vision_model_path
from sae_lens_sparsemax.explore.run import explore
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.saved_saes import load_sae
from tests.explore.test_explore_images import read
from tests.support.places import SHARED_DATA

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def mini_clip_sae(tmp_path: Path) -> Path:
    """A random SAE on the mini-CLIP whose last concept never fires."""
    if not SHARED_DATA.exists():
        pytest.skip(f"no shared data at {SHARED_DATA}")
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=128, d_sae=12))
    with torch.no_grad():
        sae.W_enc.normal_(0, 0.1)
        sae.W_dec.normal_()
        sae.W_enc[:, -1], sae.b_enc[-1] = 0, -1
    values = {
        "model_name": str(SHARED_DATA / "models" / "mini-clip-cifar10"),
        "model_class_name": "HookedViT",
        "hook_name": "blocks.2.hook_resid_post",
        "dataset_path": str(SHARED_DATA / "images" / "cifar10_test.parquet"),
    }
    for name, value in values.items():
        sae.cfg.metadata[name] = value
    sae.save_model(tmp_path / "sae")
    return tmp_path / "sae"


def test_names_come_from_the_list_and_dead_concepts_have_none(mini_clip_sae, tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(CLASSES))
    settings = ExploreSettings(samples=40, examples=1, showcase=0, words=str(tmp_path / "words.txt"))
    pages = explore([str(mini_clip_sae)], tmp_path / "pages", settings, progress=False).parent
    concepts, samples = read(pages, "0/concepts-0"), read(pages, "samples")
    assert "name" not in concepts[-1]
    named = [concept for concept in concepts if "name" in concept]
    assert len(named) == 11 and all(concept["name"][0] in CLASSES for concept in named)
    # Named from one image each, a concept mostly has the name of that image's class: the model is right on 67 %.
    right = sum(concept["name"][0] == CLASSES[samples[str(concept["e"][0][0])][-1]] for concept in named)
    assert right >= 4


@pytest.mark.parametrize(
    ("world", "words", "message"),
    [
        ("text", "cat\ndog\n", "'words' names the concepts of images"),
        ("image", "cat\ndog\n", "Text needs a whole CLIP or SigLIP model and its tokenizer"),
        ("image", "\n", "must hold words, one a line, got none"),
        ("image", None, "could not be read as text"),
        ("clip", "moon\n", r"words must be at least two that the model's tokenizer knows, got \['moon'\]"),
        ("clip", "zeppelin\n", "must hold words that the model's tokenizer knows"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_gathered(request, monkeypatch, tmp_path, world, words, message):
    if words is not None:
        (tmp_path / "words.txt").write_text(words)
    folder, model = request.getfixturevalue("text_world" if world == "text" else "image_world"), None
    if world == "clip":  # which has a tokenizer
        model = str(quickstart_vision_model_path())
        sae = StandardSAE(StandardSAEConfig(d_in=HookedViT.from_pretrained(model).cfg.d_model, d_sae=4))
        sae.cfg.metadata, folder = load_sae(str(folder / "sae")).cfg.metadata, tmp_path
        sae.save_model(folder / "sae")
    monkeypatch.setattr("sae_lens_sparsemax.explore.run.gather", lambda *_, **__: pytest.fail("gathered"))
    settings = ExploreSettings(samples=4, model_name=model, words=str(tmp_path / "words.txt"))
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        explore([str(folder / "sae")], tmp_path / "pages", settings, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == before
