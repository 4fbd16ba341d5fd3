"""The snippets of README run, the command line takes the commands of all documents, and their links lead somewhere."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from sae_lens_sparsemax.cli import main as cli
from sae_lens_sparsemax.compare.config import config_from_yaml
from sae_lens_sparsemax.settings.command_line import settings_help, split_overrides
from sae_lens_sparsemax.settings.recipes import find_recipe, recipe_names, recipe_title
from sae_lens_sparsemax.training.config_file import load_config
from tests.support.places import CONFIGS
from tests.support.places import REPOSITORY as ROOT

DOCUMENTS = [ROOT / "README.md", *sorted(CONFIGS.glob("*/README.md")), ROOT / "tests" / "benchmark" / "README.md"]
OTHERS = [ROOT / ".github" / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "sae_lens_sparsemax/assets/README.md"]
MODEL = {"model_name": "given on the command line"}


def blocks(language: str, document: Path = DOCUMENTS[0]) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """The words after `program` in every command of every document, with what stands for anything filled in."""
    found = []
    for document in DOCUMENTS:
        for line in "\n".join(blocks("bash", document)).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if " ".join(words).startswith(program):
                rest = words[len(program.split()) - program.count(".") :]
                table = "table1" if any(".datasets." in word for word in rest) else "table11"
                filled = {"NAME": table, "cuda": "cpu"}  # there may be no GPU here
                found.append([filled.get(word, word).replace("$block", "0") for word in rest])
    return found


@pytest.mark.slow
def test_python_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = {"training_tokens": 4096, "output_path": "output/quickstart", "lr_warm_up_steps": 0, "lr_decay_steps": 0}
    load_config("quickstart", short).make_runner().run()
    names: dict[str, object] = {}
    assert len(blocks("python")) >= 3
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), names)
    assert Path("output/by_hand/sae_weights.safetensors").is_file()


@pytest.mark.parametrize("words", commands("sparsemax-sae"), ids=" ".join)
def test_a_documented_command_is_one_that_the_command_line_takes(words, tmp_path, monkeypatch):
    """Read as the command reads it; what would run is replaced by checking what it was given."""
    command, taken = cli.COMMANDS[words[0]], []
    monkeypatch.setattr(command, "run", lambda options, overrides: taken.append((options, overrides)) or 0)
    assert cli._run(words) == 0
    options, overrides = taken[0]
    if words[0] in ("train", "cache-activations"):
        load_config(options.recipe, MODEL | overrides)
    elif words[0] == "compare":
        config_from_yaml(find_recipe(options.recipe, "compare"), overrides)
    elif words[0] == "reproduce":
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert cli.main([*words, "--check"]) == 0
    elif overrides:
        known = set(re.findall(r"--([\w.]+)", settings_help(command.settings(words))))
        assert {re.sub(r"^datasets\.\w+", "datasets.NAME", key) for key in overrides} <= known


@pytest.mark.parametrize("words", commands("python -m tests.benchmark"), ids=" ".join)
def test_a_documented_benchmark_takes_its_options(words, capsys):
    module = importlib.import_module(words[0] if "." in words[0][6:] else f"{words[0]}.__main__")
    with pytest.raises(SystemExit, match="0"):
        module.main([*(word for word in words[1:2] if word in ("step", "store")), "--help"])
    options = set(re.findall(r"--\w+", capsys.readouterr().out))
    keys = {word for word in words if word.startswith("--")} - options
    if words[0] == "tests.benchmark.training":
        load_config(find_recipe(words[1], "train"), split_overrides(words[2:], options)[1])
    else:
        assert not keys


def test_what_the_readme_names_in_files_is_there():
    for document in [*DOCUMENTS, *OTHERS]:
        for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_recipe_says_what_it_is_and_reads_nothing_beside_the_repository():
    for name in recipe_names():
        title = recipe_title(name)
        assert title and not title.endswith((",", ":", " with", " or", " and")), (name, title)
        assert "../" not in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"), name


def test_continuous_integration_runs_the_readmes_test_command():
    assert "python -m pytest" in next(block for block in blocks("bash") if ".[dev]" in block)
    assert "grep -m1 -F 'python -m pytest' README.md" in (ROOT / ".ci" / "run").read_text()
