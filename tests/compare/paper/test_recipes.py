"""The recipes that ship: both forms of each load, and say of the paper what the paper says."""

import pytest

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.compare.paper.recipe import load_recipe
from sae_lens_sparsemax.data.class_names import DATASETS
from sae_lens_sparsemax.evaluation.settings import TextSuiteSettings
from sae_lens_sparsemax.settings.yaml_files import merged
from sae_lens_sparsemax.training.config_file import config_from_values
from tests.support.places import CONFIGS

FOLDER = CONFIGS / "paper"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.startswith("base_"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_both_forms_load(path):
    full, small = load_recipe(path), load_recipe(path, small=True)
    assert full.arms == small.arms and full.columns == small.columns
    assert set(full.paper) <= set(full.arms)
    for recipe, d_sae in ((full, {"vision": 49_152, "text": 12_288}[full.suite]), (small, 1_024)):
        # Every training and the suite's settings were checked when the recipe was read.
        assert all(recipe.training(name, k=8.4)["sae"]["d_sae"] == d_sae for name in recipe.arms)
    assert (small.train["model_name"], small.train["dataset_path"]) == ("quickstart", "quickstart")


def test_all_tables_and_the_figures_with_measurements_are_there():
    tables = {f"table{n}" for n in range(1, 18)}
    assert {path.stem for path in RECIPES} == tables | {"figure1", "figure3", "figure3_flowers102"}
    for n in range(7, 18):
        recipe = load_recipe(FOLDER / f"table{n}.yaml")
        assert recipe.title.startswith(f"Table {n}:")
        assert recipe.evaluate["classes"] in DATASETS
        plain = {row[0] for row in recipe.paper.values()}
        assert len(recipe.paper) == 6 and max(plain) - min(plain) < 0.002


def test_text_is_held_out_of_training_by_construction():
    for path in ("table1.yaml", "table2.yaml"):
        for small in (False, True):
            recipe = load_recipe(FOLDER / path, small=small)
            assert recipe.evaluate["datasets"]["openwebtext"]["held_out"] is True
            assert recipe.evaluate["datasets"]["openwebtext"]["path"] == recipe.train["dataset_path"]
            assert recipe.train["held_out_fraction"] > 0
            assert TextSuiteSettings(**recipe.evaluate).held_out_fraction is None  # the training's own


def test_figure_3_averages_the_eleven_sets_of_the_text():
    names = load_recipe(FOLDER / "figure3.yaml").average_of
    sets = {load_recipe(FOLDER / name).evaluate["classes"] for name in names}
    assert sets == set(DATASETS) - {"imagenet_sketch"}
    assert len(names) == 11


def test_an_sae_that_matches_another_gets_its_mean_l0_as_k():
    recipe = load_recipe(FOLDER / "table4.yaml", small=True)
    assert recipe.training("TopK, matched", k=11.62)["sae"]["k"] == 12
    assert recipe.training("BatchTopK, matched", k=11.623)["sae"]["k"] == 11.62
    assert recipe.training("TopK")["sae"]["k"] == 16


def test_an_sae_that_a_row_matches_is_checked_though_it_is_no_row_itself():
    overrides = {"arms": ["TopK, matched"], "saes.sparsemax, as released.architecture": "topkk"}
    with pytest.raises(ValueError, match="did you mean 'topk'"):
        load_recipe(FOLDER / "table4.yaml", overrides=overrides)


@pytest.mark.parametrize(("architecture", "k"), [("topk", 12), ("abstopk", 12), ("batchtopk", 12.34)])
def test_a_matched_k_is_whole_where_the_architecture_takes_no_other(architecture, k):
    recipe = load_recipe(FOLDER / "table4.yaml", overrides={"saes.TopK, matched.architecture": architecture})
    settings = recipe.training("TopK, matched", k=12.344)
    assert settings["sae"]["k"] == config_from_values(settings).config.sae.k == k


def test_a_target_l0_that_all_share_is_for_sparsemax_alone_but_an_sae_may_have_its_own():
    values = {"train.sae.target_l0": 9, "saes.JumpReLU.target_l0": 8}
    recipe = load_recipe(FOLDER / "table5.yaml", overrides=values)
    targets = {name: recipe.training(name)["sae"].get("target_l0") for name in ("TopK", "JumpReLU", "sparsemax")}
    assert targets == {"TopK": None, "JumpReLU": 8, "sparsemax": 32}


def test_settings_merge_group_by_group():
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": {"e": 5}}) == {
        "a": {"b": 1, "c": 4},
        "d": {"e": 5},
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("arms", ["TopKs"], "did you mean 'TopK'"),
        ("saes.TopK.kk", 3, r"sae\.kk is not a valid key"),
        ("saes.TopK.match", "sparsmax", "did you mean 'sparsemax'"),
        ("train.lrs", 1, "lrs is not a valid key"),
        ("evaluate.n_image", 1, r"evaluate\.n_image is not a valid key"),
        ("paper.TopK", [1, 2], r"paper\.TopK must hold 5 values, .* got 2"),
        ("columns", 3, "columns must be a group of keys"),
        (
            "columns.on_1",
            "zero_shot.zero_shot.on_2.oracle.top.classes",
            r"columns\.on_1 must be a measure .*did you mean",
        ),
        ("columns.L0", "sparsity.per_tokens.mean", "did you mean 'sparsity.per_token.mean'"),
        ("columns.L0", "sparsity.per_im", "did you mean 'sparsity.per_image\."),
        ("columns.L0", "sparsitys.per_token.mean", "did you mean 'sparsity.per_token.mean'"),
        ("columns.L0", "sparsity.per_token.counts", r"\(sparsity, zero_shot\), got 'sparsity.per_token.counts'"),
        ("columns.L0", "tokens.geometry.reconstruction.l0", r"a measure of what is measured \(sparsity, zero_shot\)"),
        ("evaluate.controls", False, r"columns\.on_10, frequency-matched must be a measure"),
        ("evaluate.n_concepts", [1, 5], r"columns\.on_10 must be a measure"),
        ("groups", ["sparsty"], "groups must be one of .*did you mean 'sparsity'"),
        ("arms", ["TopK", "ReLU", "TopK"], "arms must be different from each other"),
        ("title", None, "title must be text"),
        ("saes.TopK, matched.match", "TopK, matched", r"matched\.match must be an SAE that does not in turn match"),
        (
            "saes.sparsemax, as released",
            {"architecture": "batchtopk", "match": "BatchTopK, matched"},
            r"matched\.match must be an SAE that does not in turn match .*, got ",
        ),
        ("saes.TopK, matched", {"architecture": "gated", "match": "TopK"}, r"sae\.k is not a valid key"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(key, value, message):
    path = FOLDER / "table4.yaml"
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(path, overrides={key: value})
    assert str(path) in str(error.value)


def test_check_says_what_would_be_done(capsys):
    assert main(["reproduce", str(FOLDER / "table5.yaml"), "--small", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "Table 5" in printed and "SAEs: ReLU, TopK, BatchTopK, sparsemax" in printed
    assert main(["reproduce", str(FOLDER / "table99.yaml"), "--check"]) == 2
    assert "There is no file and no recipe" in capsys.readouterr().err
