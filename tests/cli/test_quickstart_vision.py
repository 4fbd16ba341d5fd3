"""The drawings, the embedded vision model, and the first run on both."""

import json
import multiprocessing

import pytest
import torch
from safetensors import safe_open

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.data.drawings import CAPTION, CLASSES, drawing, quickstart_images
from sae_lens_sparsemax.data.images import load_image_dataset
from sae_lens_sparsemax.data.quickstart import QUICKSTART, quickstart_vision_model_path
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from tests.assets import train_clip


def test_drawings_are_the_same_each_time_and_others_in_each_split():
    images = {split: [drawing(split, n)[0].tobytes() for n in range(64)] for split in ("model", "train", "validation")}
    assert images["train"] == [drawing("train", n)[0].tobytes() for n in range(64)]
    assert len({image for split in images.values() for image in split}) == 3 * 64


def test_a_drawing_has_its_colour_where_its_shape_is():
    for label in range(64):
        image, found = drawing("train", label)
        assert (image.size, image.mode, found) == ((32, 32), "RGB", label)
    red, blue = (
        torch.tensor(list(drawing("train", CLASSES.index(f"{c} square"))[0].getdata())) for c in ("red", "blue")
    )
    assert ((red[:, 0] - red[:, 2]) > 100).sum() > 100 and ((blue[:, 2] - blue[:, 0]) > 100).sum() > 100


def test_the_data_set_names_its_classes():
    data = load_image_dataset(QUICKSTART, split="validation")
    assert len(data) == 640 and data.features["label"].names[0] == "red_circle"
    assert sorted(data["label"]) == sorted(list(range(64)) * 10)
    with pytest.raises(ValueError, match="'train' or 'validation', got 'test'"):
        load_image_dataset(QUICKSTART, split="test")
    assert len(quickstart_images("train", 3)) == 3


def test_the_embedded_model_is_small_and_knows_the_drawings():
    folder = quickstart_vision_model_path()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_500_000
    with safe_open(folder / "model.safetensors", "pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.float16}  # noqa: SIM118
    assert HookedViT.from_pretrained(QUICKSTART).dtype == torch.float32
    assert train_clip.held_out_accuracy(folder, 320) > 0.8


def test_the_script_makes_a_model_that_learns(tmp_path):
    sizes = ["--d_model", "16", "--layers", "1", "--heads", "2", "--patch", "16", "--d_text", "16"]
    train_clip.main(["--out", str(tmp_path), "--steps", "2", *sizes])
    model = HookedViT.from_pretrained(str(tmp_path))
    assert model.tokenizer.tokenize(CAPTION.format("red circle")) == ["a", "drawing", "of", "a", "red", "circle"]
    assert model.encode_text(["a drawing of a red circle", "a drawing of a blue moon"]).shape == (2, 16)


@pytest.mark.slow
def test_the_command_leaves_a_good_sae_and_says_what_is_next(tmp_path, capsys):
    assert main(["quickstart", "--vision", "--output_path", str(tmp_path)]) == 0
    assert "zero-shot accuracy, 64 classes" in capsys.readouterr().out
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["reconstruction"]["explained_variance"] > 0.8
    assert 8 < result["reconstruction"]["l0"] < 20
    assert result["model"]["zero_shot_accuracy"] > 0.6
    assert not multiprocessing.active_children()
