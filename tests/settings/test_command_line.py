import pytest

from sae_lens_sparsemax.settings.command_line import apply_overrides, split_overrides


def test_every_spelling_of_an_override_is_understood():
    words = ["train", "c.yaml", "--sae.target_l0", "32", "--lr=1e-3", "--set", "sae.k=null", "--resume"]
    rest, overrides = split_overrides(words, {"--resume"})
    assert rest == ["train", "c.yaml", "--resume"]
    assert overrides == {"sae.target_l0": "32", "lr": "1e-3", "sae.k": "null"}


def test_a_negative_number_is_a_value():
    assert split_overrides(["--hook_head_index", "-1"], set())[1] == {"hook_head_index": "-1"}


@pytest.mark.parametrize("words", [["--lr"], ["--lr", "--resume"]])
def test_an_override_without_a_value_is_refused(words):
    with pytest.raises(ValueError, match="--lr needs a value"):
        split_overrides(words, {"--resume"})


@pytest.mark.parametrize("words", [["--set"], ["--set", "lr"], ["--set==3"]])
def test_set_wants_key_equals_value(words):
    with pytest.raises(ValueError, match="--set must be key=value"):
        split_overrides(words, set())


def test_groups_are_made_and_the_original_is_left_alone():
    values = {"sae": {"d_sae": 8}}
    assert apply_overrides(values, {"sae.k": 2, "logger.run_name": "a"}) == {
        "sae": {"d_sae": 8, "k": 2},
        "logger": {"run_name": "a"},
    }
    assert values == {"sae": {"d_sae": 8}}


def test_a_key_below_a_single_value_is_refused():
    with pytest.raises(ValueError, match=r"lr must be a group of keys for lr\.x to be set, got 1\.0"):
        apply_overrides({"lr": 1.0}, {"lr.x": 2})
