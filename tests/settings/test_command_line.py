from dataclasses import dataclass

import pytest

from sae_lens_sparsemax.settings.command_line import Group, apply_overrides, settings_help, split_overrides


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


@dataclass
class Settings:
    """Settings of a command.

    Args:
        lr: The learning rate.
    """

    lr: float = 1e-3
    streaming: bool = False
    """Read 100 % as it comes,
    not all at once."""
    name: str | None = None


def test_a_true_or_false_field_needs_no_value():
    groups = [Group("settings", Settings)]
    words = ["--streaming", "a.yaml", "--lr", "1"]
    assert split_overrides(words, set(), groups) == (["a.yaml"], {"streaming": True, "lr": "1"})
    assert split_overrides(["--streaming", "false"], set(), groups) == ([], {"streaming": "false"})


def test_the_help_tells_each_field_with_its_docstring_and_default():
    text = " ".join(settings_help([Group("settings of x", Settings, "group")]).split())
    assert "settings of x: --group.lr X The learning rate (default 0.001)" in text
    assert "--group.streaming [true|false] Read 100 % as it comes, not all at once (default false)" in text
    assert text.endswith("--group.name TEXT")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--max-norm", "3"], "--max-norm must be spelt with underscores: --max_norm"),
        (["--output", "here"], "--output is now called --output_path"),
        (["--resum"], "--resum needs a value; did you mean --resume"),
    ],
)
def test_a_misspelt_option_is_answered_with_the_right_one(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        split_overrides(words, {"--resume", "--output_path"})
