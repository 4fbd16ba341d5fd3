import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from sae_lens import SAE

from sae_lens_sparsemax import PRESETS, __version__
from sae_lens_sparsemax.cli import train
from sae_lens_sparsemax.cli.main import main
from tests.support.places import REPOSITORY
from tests.support.tiny_language_model import documents


@pytest.fixture
def config_path(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A run of 20 steps, one checkpoint, on the tiny model."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"content": text}) + "\n" for text in documents(30)))
    values = {
        "model_name": str(tiny_model_folder),
        "model_class_name": "TransformerBridge",
        "hook_name": "blocks.0.hook_resid_post",
        "dataset_path": str(text),
        "text_column": "content",
        "context_size": 16,
        "store_batch_size_prompts": 4,
        "n_batches_in_buffer": 8,
        "train_batch_size_tokens": 32,
        "training_tokens": 640,
        "n_checkpoints": 1,
        "output_path": str(tmp_path / "out"),
        "verbose": False,
        "sae": {"d_sae": 32, "target_l0": 4},
        "logger": {"wandb_log_frequency": 5},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_train_then_evaluate(config_path, capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["train", str(config_path), "--sae.architecture", "sparsemax", "--lr", "1e-2"]) == 0
    assert f"sparsemax-sae evaluate {out}" in capsys.readouterr().out
    assert SAE.load_from_disk(out).cfg.architecture() == "sparsemax"

    # Model, data set, column and context all come from the SAE's metadata.
    assert main(["evaluate", str(out), "--batches", "2", "--batch_size", "4"]) == 0
    printed = capsys.readouterr().out
    for row in ("L0, mean", "explained variance", "CE loss score", "dead in 128 tokens"):
        assert row in printed
    result = json.loads((out / "evaluation.json").read_text())
    assert set(result["saelens"]) >= {"model_behavior_preservation", "reconstruction_quality", "sparsity", "shrinkage"}
    assert len(result["features"]["feature_density"]) == 32

    checkpoint = next((out / "checkpoints").iterdir())
    other = ["--output_path", str(tmp_path / "c.json"), "--batches", "1", "--batch_size", "4"]
    assert main(["evaluate", str(checkpoint), *other]) == 0
    assert (tmp_path / "c.json").is_file()


@pytest.mark.usefixtures("without_pictures")
def test_checkpoints_of_an_earlier_run_are_continued_or_replaced_on_request_only(config_path, capsys, tmp_path):
    train = ["train", str(config_path)]
    assert main([*train, "--resume"]) == 2
    assert "no checkpoint to resume from" in capsys.readouterr().err
    assert main(train) == 0
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert main(train) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*train, "--resume"]) == 0
    resumed = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["losses/overall_loss"] for line in resumed] == [
        json.loads(line)["losses/overall_loss"] for line in lines
    ]
    assert main([*train, "--overwrite", "--n_checkpoints", "0"]) == 0
    assert not list((tmp_path / "out" / "checkpoints").iterdir())
    assert main([*train, "--resume", "--overwrite"]) == 2


def test_dry_run_prints_the_complete_configuration_and_trains_nothing(config_path, capsys, tmp_path):
    assert main(["train", str(config_path), "--dry_run", "--set", "sae.d_sae=48"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# 20 steps\n")
    assert yaml.safe_load(printed)["sae"]["d_sae"] == 48
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--lr", "1e-3", "--streaming", "true"],
        ["--lr", "1e-3", "--streaming"],
        ["--streaming", "True", "--lr=1e-3"],
        ["--set", "lr=1e-3", "--resume", "--streaming"],
    ],
)
def test_settings_may_stand_before_the_recipe(config_path, capsys, options):
    assert main(["train", *options, str(config_path), "--dry_run"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["lr"] == 1e-3 and printed["streaming"] is True
    assert printed["sae"]["d_sae"] == 32


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ["train", "quickstart", "--sae.encoder_bias", "perhaps"],
            "--sae.encoder_bias must be true or false, got 'perhaps'",
        ),
        (["train", "quickstart", "--streaming", "1"], "--streaming must be true or false, got '1'"),
        (["cache-activations", "quickstart", "--streaming", "no"], "--streaming must be true or false, got 'no'"),
        (["train", "quickstart", "--dry_run", "true"], "--dry_run must be given without a value, got 'true'"),
        (["quickstart", "--vision", "please"], "--vision must be given without a value, got 'please'"),
        (["train", "quickstart", "again"], "unrecognized arguments: again"),
        (["compare", "synthetic", "--steps", "3", "3"], "unrecognized arguments: 3"),
        (["train", "--lr", "1e-3", "quickstrat"], "did you mean quickstart?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_word_that_nothing_takes_is_explained(capsys, monkeypatch, tmp_path, command, message):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sae.targt_l0", "3"], "did you mean sae.target_l0?"),
        (["--learning_rate", "3"], "learning_rate is not a valid key"),
        (["--lr"], "--lr needs a value"),
        (["--hook_name", "blocks.0.hook_resid_pots"], "did you mean 'blocks.0.hook_resid_post'"),
        (["--sae.d_in", "8"], "'sae.d_in' is 8"),
        (["--text_column", "txt"], "text_column must be one of 'content' in"),
        (["--dataset_path", "absent.jsonl"], "there is no file 'absent.jsonl'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(config_path, capsys, arguments, message):
    assert main(["train", str(config_path), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("sparsemax-sae: error: ")
    assert message in error


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        main(["train", str(tmp_path / "absent.yaml"), "--debug"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "an SAE on the hub is named user/repository:id"),
        (".", "holds no SAE: it has no cfg.json"),
    ],
)
def test_evaluating_what_is_no_sae_is_explained(capsys, monkeypatch, tmp_path, source, message):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", source]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["train"], ["cache-activations"], ["evaluate"], ["quickstart"]])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "sparsemax-sae" in capsys.readouterr().out


def test_the_module_is_the_command(capsys, monkeypatch):
    """Run as `python -m` runs it, in this process."""
    monkeypatch.setattr(sys, "argv", ["sae_lens_sparsemax", "--version"])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_module("sae_lens_sparsemax", run_name="__main__", alter_sys=True)
    assert capsys.readouterr().out == f"sparsemax-sae {__version__}\n"


@pytest.mark.slow
def test_quickstart_leaves_a_good_sae_and_says_what_is_next(capsys, tmp_path):
    assert main(["quickstart", "--output_path", str(tmp_path / "quick")]) == 0
    printed = capsys.readouterr().out
    assert "Run next:" in printed
    result = json.loads((tmp_path / "quick" / "evaluation.json").read_text())
    assert result["on"]["dataset_split"] == "validation"
    assert result["reconstruction"]["explained_variance"] > 0.8
    assert 10 < result["reconstruction"]["l0"] < 25
    assert result["saelens"]["model_performance_preservation"]["ce_loss_score"] > 0.8


SAE_FOLDER = str(REPOSITORY / "tests" / "assets" / "version_0_1" / "sae")


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (["train", "quickstart"], "training_tokens"),
        (["cache-activations", "quickstart_vision"], "training_tokens"),
        (["evaluate", SAE_FOLDER], "batches"),
        (["evaluate", SAE_FOLDER, "--suite", "text"], "n_tokens"),
        (["evaluate", SAE_FOLDER, "--suite", "vision"], "n_images"),
        (["evaluate", SAE_FOLDER, "--suite", "all"], "n_tokens"),
        (["explore", SAE_FOLDER], "samples"),
        (["app", SAE_FOLDER], "port"),
        (["compare", "synthetic"], "steps"),
        (["reproduce", "table5", "--small"], "train.training_tokens"),
        (["reproduce", "table5", "--small"], "evaluate.n_images"),
    ],
    ids=lambda value: " ".join(Path(word).name for word in value) if isinstance(value, list) else value,
)
def test_the_same_mistake_is_said_in_the_same_sentence_by_every_command(capsys, monkeypatch, tmp_path, command, key):
    monkeypatch.chdir(tmp_path)
    assert main([*command, f"--{key}", "many"]) == 2
    name = key.removeprefix("train.")
    assert re.search(f"{name} must be a whole number( or null)?, got 'many'$", capsys.readouterr().err.strip())
    group = key.rpartition(".")[0]
    assert main([*command, f"--{group}.xyzzy" if group else "--xyzzy", "1"]) == 2
    assert "xyzzy is not a valid key" in capsys.readouterr().err.splitlines()[-1]


def test_recipes_are_listed_each_with_a_line(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert "compare/synthetic " in printed and "Table 5: " in printed
    assert main(["train"]) == 0
    printed = capsys.readouterr().out
    assert "vision/quickstart_vision " in printed and "paper/table5" not in printed


def test_the_help_of_a_recipe_tells_the_keys_of_its_training(capsys):
    with pytest.raises(SystemExit):
        main(["train", "quickstart", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "--lr X The learning rate (default 0.0003)" in printed
    assert "--sae.target_l0 X Mean concepts per token to hold during training" in printed
    assert "--logger.wandb_log_frequency N" in printed
    presets = printed.partition("--sae.preset TEXT")[2].partition("--sae.")[0]
    assert "--sae.architecture TEXT" in printed and all(name in presets for name in PRESETS)


def test_ctrl_c_is_one_line_that_says_how_to_go_on(capsys, monkeypatch):
    def stop(options, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", stop)
    assert main(["train", "quickstart"]) == 130
    assert capsys.readouterr().err == "Stopped. Continue from the last checkpoint with the same command and --resume.\n"
