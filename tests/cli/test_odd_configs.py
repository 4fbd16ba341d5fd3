"""Configurations that nobody means: recipes of ours, mutated, and words of the command line.

Whatever they are, a command either would begin its work or says one sentence with status 2, and soon. `TRIAL_CONFIGS`
says how many are tried.
"""

import json
import os
import random
import time
from typing import Any

import pytest

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.settings.recipes import find_recipe, recipe_names
from sae_lens_sparsemax.settings.yaml_files import read_yaml
from tests.support.places import REPOSITORY

SAE_FOLDER = str(REPOSITORY / "tests" / "assets" / "version_0_1" / "sae")
SECONDS = 5  # one, on a machine that does nothing else
LETTERS = 1500


class Raw(str):
    """Text that stands in a file as it is."""


BOMB = "[&a [x,x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b], &d [*c,*c,*c,*c,*c,*c,*c]]"
ODD = [
    *("null", "true", "[]", "{}", "''", "0", "-1", "-0.0", "1.5", ".inf", "-.inf", ".nan", "1e999", "1e-999", "0x10"),
    *("[null]", "[[]]", "{a: {b: {c: 1}}}", "[1, a, null, {}]", "{[1]: 2}", "{{a: 1}: 2}", "{1: 2}", "{null: 1}"),
    *("9" * 400, "9" * 5000, "-" + "9" * 30, "2147483648", "9223372036854775808", "0." + "1" * 400, "1_0", "0100"),
    *("[" * 60 + "]" * 60, "[" * 3000 + "]" * 3000, BOMB, f"{{<<: {BOMB}}}", "&x [*x]", "&x {<<: *x}"),
    *("!!python/object/apply:os.system [ls]", "!!python/name:os.system", "!!binary aGk=", "!!set {a}", "!x y"),
    *('"a\\0b"', '"\\ud800"', '"\\udcff"', '"\\n\\n"', '"\\u202e"', "'x'", "x" * 100_000, "é", "..", ".", "/", "~"),
    *("{a: 1, a: 2}", "{a: {b: 1, b: 2}}", "2024-05-01", "no", "1:30"),
    *("/dev/null", "/dev/zero", "no/such/file", "/no/such", "./x", "quickstart", "sparsemax", "topk", "[0, 2]"),
    *("cuda:9999", "meta", "float16", "int8", "{generator_name: x}", "{architecture: topk}", "{path: null}", "['']"),
]  # fmt: skip
BROKEN = ["[" * 3000, "{a: " * 1000, "[1,", "a: b: c", "%", "@", "`", "#", "|\n  x", "*nothing", "'", '"', "\t", "]"]
KEYS = [
    "",
    "x",
    "lr",
    "sae",
    "a.b",
    "__class__",
    "self",
    "metadata",
    "base",
    "runner",
    "preset",
    "small",
    "é",
    "k" * 500,
]
NAMES = ["", ".", "lr", "sae", "sae.", ".sae", "sae..k", "sae.k", "lr.x", "no-such", "é", "x" * 5000, "\0", "a b"]


def written(value: Any) -> str:
    """YAML in one line."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        keys = (key if isinstance(key, Raw) else json.dumps(key) for key in value)
        return "{" + ", ".join(f"{key}: {written(each)}" for key, each in zip(keys, value.values(), strict=True)) + "}"
    return "[" + ", ".join(map(written, value)) + "]" if isinstance(value, list) else json.dumps(value)


def odd(rng: random.Random) -> str:
    """An odd value; one in ten is no YAML."""
    return rng.choice(ODD if rng.random() < 0.9 else BROKEN)


def groups_in(value: Any) -> list[Any]:
    """Every group and list, the outermost first."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(each for item in inner for each in groups_in(item))] if isinstance(value, dict | list) else []


def mutate(values: dict[str, Any], rng: random.Random) -> None:
    """Change one place."""
    group = rng.choice(groups_in(values))
    if isinstance(group, list):
        group.insert(rng.randint(0, len(group)), Raw(odd(rng)))
    elif not group or rng.random() < 0.2:
        raw = map(Raw, ("<<", "? [1, 2]", "? {a: 1}", "1", "null"))
        group[rng.choice([*KEYS, *raw])] = Raw(odd(rng))
    else:
        key = rng.choice(list(group))
        if rng.random() < 0.1:
            del group[key]
        elif rng.random() < 0.1:
            group[rng.choice([key[:-1], key + "s", key.upper(), f"{key} "])] = group.pop(key)
        else:
            group[key] = Raw(odd(rng))


def spoilt(text: str, rng: random.Random) -> bytes:
    """The bytes of a file, mostly as they should be."""
    data = text.encode("utf-8", "surrogatepass")
    kind = rng.randrange(40)
    if kind == 0:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 1:
        place = rng.randrange(len(data) or 1)
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if kind == 2:
        return text.encode(rng.choice(["utf-16", "utf-16-be", "utf-32", "utf-8-sig"]), "surrogatepass")
    if kind == 3:
        return data + rng.choice([b"\n---\na: 1", b"\xff", b"\0", b"\ncaf\xe9: 1", b"\n" * 300_000])
    return data if kind > 4 else rng.choice([b"", b"#", b"- 1", b"3", b"null", b"\0", b"\xff\xfe", b"x" * 300_000])


def words_for(command: str, file: str, rng: random.Random) -> list[str]:
    """A command line without options of ours."""
    suite = rng.choice([["--suite", "text"], ["--suite", "vision"], []])
    return {
        "train": ["train", file, "--dry_run"],
        "cache-activations": ["cache-activations", file, "--cached_activations_path", "cache"],
        "compare": ["compare", file],
        "reproduce": ["reproduce", file, "--check", *rng.choice([["--small"], []])],
        "evaluate": ["evaluate", SAE_FOLDER, "--config", file, *suite],
        "explore": ["explore", SAE_FOLDER],
        "suggest-k": ["suggest-k", SAE_FOLDER, "--settings", file, "--l0", rng.choice(["8", *ODD]),
                      "--output_path", "suggested"],
    }[command]  # fmt: skip


def odd_options(values: dict[str, Any], rng: random.Random) -> list[str]:
    """One to three options, of which the names are keys of the file or none."""
    dotted = [f"{key}.{inner}" for key, group in values.items() if isinstance(group, dict) for inner in group]
    options = []
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(rng.choice([list(values), dotted or NAMES, NAMES]))
        value = odd(rng)
        forms = [f"--{name}", value], [f"--{name}={value}"], [f"--{name}"], ["--set", f"{name}={value}"]
        options += rng.choice(forms)
    return options


RECIPES = {"train": "train", "cache-activations": "train", "compare": "compare", "reproduce": "reproduce"}
RECIPES |= {"evaluate": "evaluate", "explore": "evaluate", "suggest-k": "train"}


@pytest.fixture
def no_work(monkeypatch, tmp_path):
    """Every command ends with status 0 where its work would begin."""
    table = tmp_path / "table.md"
    table.write_text("")

    class Begins(Exception):
        """Instead of the work."""

    def begins(*_: Any, **__: Any) -> Any:
        raise Begins

    monkeypatch.setattr("sae_lens_sparsemax.compare.runner.compare", begins)
    monkeypatch.setattr("sae_lens_sparsemax.training.cache_runner.cache_activations", begins)
    monkeypatch.setattr("sae_lens_sparsemax.explore.run.explore", begins)
    monkeypatch.setattr("sae_lens_sparsemax.models.saved_saes.load_sae", begins)
    monkeypatch.chdir(tmp_path)
    return Begins


@pytest.mark.timeout(3000)
def test_odd_configs_are_one_sentence_each(capsys, no_work, tmp_path):
    n = int(os.environ.get("TRIAL_CONFIGS", "200"))
    rng = random.Random(n)
    recipes = {command: recipe_names(command) for command in set(RECIPES.values())}
    file = tmp_path / "odd.yaml"
    outcomes = {0: 0, 2: 0}
    for i in range(n):
        command = rng.choice(list(RECIPES))
        values = read_yaml(find_recipe(rng.choice(recipes[RECIPES[command]]), RECIPES[command]))
        on_command_line = command == "explore" or rng.random() < 0.25
        words = words_for(command, str(file), rng) + (odd_options(values, rng) if on_command_line else [])
        if not on_command_line:
            for _ in range(rng.randint(1, 2)):
                mutate(values, rng)
        file.write_bytes(spoilt(written(values), rng) if not on_command_line else written(values).encode())
        started = time.perf_counter()
        try:
            status = main(words)
        except no_work:
            status = 0
        except BaseException as error:
            file.rename(tmp_path / f"failed_{i}.yaml")
            raise AssertionError(f"{i}: {[word[:200] for word in words]}") from error
        seconds, said = time.perf_counter() - started, capsys.readouterr().err.strip().splitlines()
        what = f"{i}: {[word[:200] for word in words]}: {said}"
        assert status in outcomes, what
        assert seconds < SECONDS, what
        if status == 2:
            assert said[-1].startswith("sparsemax-sae: error: "), what
            assert len(said[-1]) < LETTERS, what
        outcomes[status] += 1
    assert outcomes[2] > n / 2, outcomes
