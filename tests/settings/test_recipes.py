import pytest

from sae_lens_sparsemax.settings.recipes import find_recipe, is_recipe, recipe_names, recipe_title
from tests.support.places import CONFIGS


@pytest.mark.parametrize(
    ("name", "command", "file"),
    [
        ("gpt2_small_openwebtext", "train", "gpt2_small_openwebtext.yaml"),
        ("vision/quickstart_vision", "train", "vision/quickstart_vision.yaml"),
        ("quickstart_vision", "train", "vision/quickstart_vision.yaml"),
        ("synthetic", "train", "synthetic.yaml"),
        ("synthetic", "compare", "compare/synthetic.yaml"),
        ("compare/smollm2", "compare", "compare/smollm2.yaml"),
        ("configs/paper/table5.yaml", "reproduce", "paper/table5.yaml"),
    ],
)
def test_recipes_are_found_by_name_wherever_one_is(tmp_path, monkeypatch, name, command, file):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name, command).resolve() == (CONFIGS / file).resolve()


def test_a_file_that_exists_comes_before_a_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "synthetic").write_text("lr: 1\n")
    assert find_recipe("synthetic", "train").read_text() == "lr: 1\n"


@pytest.mark.parametrize(
    ("name", "command", "near"),
    [
        ("gpt2_smal", "train", "gpt2_small_openwebtext"),
        ("configs/vision/clip_vit_b16_sparsmax.yaml", "train", "vision/clip_vit_b16_sparsemax"),
        ("syntetic", "compare", "compare/synthetic"),
        ("table55", "reproduce", "paper/table5"),
    ],
)
def test_a_recipe_that_is_not_there_is_answered_with_the_nearest_of_its_kind(name, command, near):
    with pytest.raises(ValueError, match=f"There is no file and no recipe '{name}'; did you mean {near}"):
        find_recipe(name, command)


def test_every_recipe_says_what_it_is():
    names = recipe_names()
    assert {"quickstart", "compare/smollm2", "paper/table17"} <= set(names)
    assert not any("base" in name for name in names)
    assert all(len(recipe_title(name)) > 10 for name in names)


def test_a_recipe_is_a_name_or_a_file(tmp_path):
    (tmp_path / "own.yaml").write_text("lr: 1\n")
    assert is_recipe("quickstart", "train") and is_recipe(str(tmp_path / "own.yaml"), "train")
    assert not is_recipe("1e-3", "train") and not is_recipe(str(tmp_path), "train")
