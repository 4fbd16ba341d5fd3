"""The README's snippets run, and what its commands name is there."""

import re
import shlex
from pathlib import Path

import pytest

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.training.config_file import load_config
from tests.support.places import REPOSITORY as ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


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


def test_commands_name_configs_that_are_there_and_valid(tmp_path, capsys):
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    ours = [words[1:] for words in commands if words[:1] == ["sparsemax-sae"]]
    assert ours
    for words in ours:
        for word in words:
            if word.endswith(".yaml"):
                assert (ROOT / word).is_file(), word
        if words[0] == "train":
            words = [str(ROOT / word) if word.endswith(".yaml") else word for word in words if word != "--resume"]
            assert main([*words, "--dry_run"]) == 0, capsys.readouterr().err


def test_continuous_integration_runs_the_readmes_test_command():
    assert "python -m pytest" in next(block for block in blocks("bash") if ".[dev]" in block)
    assert "grep -m1 -F 'python -m pytest' README.md" in (ROOT / ".ci" / "run").read_text()
