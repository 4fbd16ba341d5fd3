"""From a YAML file and command-line overrides to the configuration of a training run.

The keys are the field names of SAELens's runner configs (``LanguageModelSAERunnerConfig``,
``SyntheticSAERunnerConfig``), with ``sae:`` and ``logger:`` as groups, and ``runner:`` to choose between
them. SAELens drops unknown keys under ``sae:`` silently; here every unknown key is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens.config import LoggingConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_sparsemax.sae.config import ARCHITECTURE
from sae_lens_sparsemax.sae.presets import PRESETS
from sae_lens_sparsemax.settings.checking import build, convert, plain, refuse_unknown_keys
from sae_lens_sparsemax.settings.command_line import Group, apply_overrides
from sae_lens_sparsemax.settings.recipes import find_recipe
from sae_lens_sparsemax.settings.sentences import Mistake, must_be, must_be_one_of
from sae_lens_sparsemax.settings.yaml_files import read_yaml, yaml_text
from sae_lens_sparsemax.training.config import n_steps
from sae_lens_sparsemax.training.estimate import described
from sae_lens_sparsemax.training.mesh import parallel_of


class RunnerKind(NamedTuple):
    """One value of the key ``runner``."""

    load: Callable[[], tuple[type, type]]
    """Imports and returns the config class and the runner class."""
    required: tuple[str, ...]
    """Keys that must be given although the config class has a default for them."""


class LoadedConfig(NamedTuple):
    """A validated configuration."""

    runner: str
    """Name in ``RUNNERS``."""
    config: Any
    """Instance of the config class of that runner."""

    def make_runner(self) -> Any:
        """Build the runner; its ``run()`` trains."""
        return RUNNERS[self.runner].load()[1](self.config)

    def describe(self) -> str:
        """The complete configuration as YAML, which ``load_config`` reads back, with the number of steps, and for
        several ranks with an estimate of what they need."""
        values = {"runner": self.runner, **self.config.to_dict()}
        # What SAELens records about the training is made anew at each start.
        values["sae"] = {key: value for key, value in values["sae"].items() if key != "metadata"}
        plain = json.loads(json.dumps(values))
        steps = f"# {n_steps(self.config):,} steps\n"
        text = steps + yaml_text(plain).rstrip()
        if parallel_of(self.config).size > 1:
            text += "".join(f"\n# {line}" for line in described(self.config))
        return text


def _language_model() -> tuple[type, type]:
    from sae_lens_sparsemax.training.config import TextRunnerConfig
    from sae_lens_sparsemax.training.text_runner import TextTrainingRunner

    return TextRunnerConfig, TextTrainingRunner


def _synthetic() -> tuple[type, type]:
    from sae_lens_sparsemax.training.config import SyntheticRunnerConfig
    from sae_lens_sparsemax.training.synthetic_runner import SyntheticTrainingRunner

    return SyntheticRunnerConfig, SyntheticTrainingRunner


def _vision() -> tuple[type, type]:
    from sae_lens_sparsemax.training.vision_config import VisionSAERunnerConfig
    from sae_lens_sparsemax.training.vision_runner import VisionSAETrainingRunner

    return VisionSAERunnerConfig, VisionSAETrainingRunner


RUNNERS: dict[str, RunnerKind] = {
    "language_model": RunnerKind(_language_model, ("model_name", "hook_name", "dataset_path")),
    "vision": RunnerKind(_vision, ("model_name", "hook_name", "dataset_path")),
    "synthetic": RunnerKind(_synthetic, ()),
}


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> LoadedConfig:
    """Read, complete and check a configuration file.

    Args:
        path: YAML or JSON file, or the name of a recipe.
        overrides: Dotted key to value, set before anything is checked.

    Raises:
        ValueError: Unreadable file; unknown, missing or wrongly typed key, each named with its place.
    """
    path = find_recipe(path, "train")
    values = apply_overrides(_without_other_data(read_yaml(path), overrides or {}), overrides or {})
    try:
        return config_from_values(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _without_other_data(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A file's settings without those that describe its images, where the command line names others.

    Columns, splits and classes are then found in those; a file that evaluates has them evaluated on too.
    """
    if values.get("runner") != "vision":
        return values
    others = {
        key: name
        for key in ("dataset_path", "eval_dataset_path")
        if (name := overrides.get(key)) is not None and str(name) != values.get(key)
    }
    if "dataset_path" in others and values.get("eval_dataset_path"):
        others.setdefault("eval_dataset_path", others["dataset_path"])
    gone = {"image_column"} if others else set()
    for key in others:
        gone |= {key.replace("path", "split"), key.replace("path", "config")}
    if "eval_dataset_path" in others:
        gone |= {"eval_label_column", "eval_class_names"}
    return {key: value for key, value in values.items() if key not in gone} | others


def config_from_values(values: Mapping[str, Any]) -> LoadedConfig:
    """``load_config`` for a mapping that is already in memory."""
    kind, config_class = runner_of(values)
    values = {key: value for key, value in plain_values(values).items() if key != "runner"}
    _refuse_misplaced_keys(values, {field.name for field in dataclasses.fields(config_class)})
    for key in (*RUNNERS[kind].required, "sae"):
        if values.get(key) in (None, ""):
            raise Mistake(key, "must be given")

    # SAELens logs to wandb unless told otherwise; a first run should need no account.
    logger = convert(values.get("logger") or {}, dict, "logger")
    values["logger"] = build(LoggingConfig, {"log_to_wandb": False, **logger}, "logger")
    values["sae"] = _build_sae(values)
    if values.get("output_path", "output") is not None:
        values.setdefault("checkpoint_path", f"{values.get('output_path', 'output')}/checkpoints")
    return LoadedConfig(kind, build(config_class, values))


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a training with every word of the command line read; nothing else is checked."""
    _, config_class = runner_of(values)
    groups = {"sae": sae_class(values.get("sae") or {}), "logger": LoggingConfig}
    given = {key: plain(cls, values[key]) for key, cls in groups.items() if isinstance(values.get(key), Mapping)}
    return plain(config_class, {**values, **given})


@dataclasses.dataclass
class _SAEByName:
    """Keys of the group `sae` that are no fields of an architecture's config."""

    architecture: str = ARCHITECTURE
    """Any that SAELens knows; each has settings of its own."""
    preset: str | None = None
    """Settings of the architecture sparsemax by name, which keys given beside it replace: one_pass (cheap),
    three_passes (explains most), features (true concepts), sparsemax, paper or released."""


def settings_of(recipe: str | Path) -> list[Group]:
    """All keys of the training that a file or recipe asks for, as the help shows them."""
    values = read_yaml(find_recipe(recipe, "train"))
    kind, config_class = runner_of(values)
    sae = sae_class(values.get("sae") or {})
    return [
        Group(f"settings of 'runner: {kind}'", config_class),
        Group("the SAE", _SAEByName, "sae"),
        Group(f"settings of 'sae.architecture: {sae.architecture()}'", sae, "sae"),
        Group("settings of the log", LoggingConfig, "logger"),
    ]


def runner_of(values: Mapping[str, Any]) -> tuple[str, type]:
    """The runner that settings ask for, by name, and its config class."""
    runner = str(values.get("runner", "language_model"))
    if runner not in RUNNERS:
        raise must_be_one_of("runner", runner, RUNNERS)
    return runner, RUNNERS[runner].load()[0]


def _refuse_misplaced_keys(values: Mapping[str, Any], field_names: set[str]) -> None:
    """Unknown top-level keys, with a better answer where the key belongs under ``sae`` or ``logger``."""
    groups = {"sae": sae_class(values.get("sae") or {}), "logger": LoggingConfig}
    for key in values:
        for group, cls in groups.items():
            if key not in field_names and key in {field.name for field in dataclasses.fields(cls)}:
                raise Mistake(key, "is not a valid key at the top level", f"{group}.{key}")
    refuse_unknown_keys(values, field_names)


def sae_class(given: Any) -> type[TrainingSAEConfig]:
    """The training config class of the architecture that the group `sae` names."""
    if not isinstance(given, Mapping):
        raise must_be("sae", "a group of keys", given)
    name = given.get("architecture", ARCHITECTURE)
    if not isinstance(name, str) or name not in SAE_TRAINING_CLASS_REGISTRY:
        raise must_be_one_of("sae.architecture", name, SAE_TRAINING_CLASS_REGISTRY)
    return SAE_TRAINING_CLASS_REGISTRY[name][1]


def _build_sae(values: Mapping[str, Any]) -> TrainingSAEConfig:
    given = values["sae"]
    config_class = sae_class(given)
    settings = {key: value for key, value in given.items() if key != "architecture"}
    # Null takes out a key of the file that belongs to another architecture than the one now asked for.
    own = {field.name for field in dataclasses.fields(config_class)}
    settings = {key: value for key, value in settings.items() if value is not None or key in {*own, "preset"}}
    settings = with_preset(settings, config_class.architecture())
    for key in ("device", "dtype"):
        if key in values:
            settings.setdefault(key, convert(values[key], str, key))
    # The runner reads the width from the model when it finds 0.
    return build(config_class, {"d_in": 0, **settings}, "sae")


def with_preset(given: Mapping[str, Any], architecture: str, place: str = "sae") -> dict[str, Any]:
    """The keys of a group of an SAE's settings, those of its `preset` among them; keys that are given win.

    Raises:
        ValueError: the preset is none, or of another architecture; names it as a key of `place`.
    """
    if "preset" not in given:
        return dict(given)
    if architecture != ARCHITECTURE:
        raise must_be(f"{place}.architecture", f"{ARCHITECTURE!r}, to which {place}.preset belongs", architecture)
    name = given["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise must_be_one_of(f"{place}.preset", name, PRESETS)
    return {**PRESETS[name], **{key: value for key, value in given.items() if key != "preset"}}
