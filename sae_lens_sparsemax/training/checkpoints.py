"""The output of a run: whose folder it is, which checkpoints there are, and whether one is whole and fits the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_sparsemax.files import (
    CHECKSUMS_FILENAME,
    atomic_write_text,
    only_writer,
    read_object,
    reading,
    tensor_shapes,
    verify_checksums,
    write_checksums,
)
from sae_lens_sparsemax.models.shards import is_of_ranks, sae_in_shards
from sae_lens_sparsemax.processes.together import gathered, is_first, together
from sae_lens_sparsemax.sae.config import ARCHITECTURE, EARLIER_GATE
from sae_lens_sparsemax.settings.sentences import must_be, shown

COUNTS_FILENAME = "trainer_state.json"
"""What of the trainer's state is no tensor, in a checkpoint of several processes."""
_SEALED = "has_checksums"
_FINAL = "final_"
_TOKENS = ("training_tokens", "training_samples")
# What a resumed run may change: how long and where it runs, and what it shows and saves; not what it computes.
_MAY_CHANGE = {
    *_TOKENS,
    "logger",
    "verbose",
    "output_path",
    "checkpoint_path",
    "n_checkpoints",
    "save_final_checkpoint",
    "resume_from_checkpoint",
    "device",
    "sae.device",
    "llm_device",
    "model_device",
    "act_store_device",
    "n_decode_workers",
    "prefetch_image_batches",
    "prefetch_llm_batches",
    "cached_activations_path",  # the store sees to it that it is the same cache
    "parallel",
    "sae.metadata",
    "sae_lens_version",
    "sae_lens_training_version",
}
_FOUND = {"dataset_split", "image_column"}
"""Settings that, where nothing is given, are as the data have them."""


def list_checkpoints(folder: Path | str) -> list[Path]:
    """Checkpoints of a run, oldest first: the folders named after the tokens trained on.

    That of `save_final_checkpoint` is `final_` and the tokens, and goes before another after as many, as what scaled
    the activations is folded into its SAE.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _tokens_in(path).isdecimal() and path.is_dir()]
    return sorted(found, key=lambda path: (int(_tokens_in(path)), not path.name.startswith(_FINAL)))


def _tokens_in(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix(_FINAL)


def newest_checkpoint(folder: Path | str) -> Path:
    """The checkpoint with the most training behind it.

    Raises:
        ValueError: there is none.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ValueError(f"There is no checkpoint to resume from in {str(folder)!r}.")
    return checkpoints[-1]


@contextmanager
def output_of_run(config: Any, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
    """Inside the block, the folders of a run are this process's alone, and nothing of another run is in the way.

    A run is in such a block itself; a command enters one before, to refuse at once what would be refused later. Of
    several ranks the first has the folders.

    Args:
        config: a runner config; ``resume_from_checkpoint`` is set on it if ``resume``.
        resume: continue from the newest checkpoint in ``checkpoint_path``.
        overwrite: delete the checkpoints there, and replace the SAE in ``output_path``.

    Raises:
        ValueError: nothing to resume; an SAE or checkpoints that nobody said what to do with; a folder that cannot be
            written to, or that another process writes to.
    """
    with ExitStack() as stack:
        with together():
            if is_first():
                _take_folders(stack, config, resume, overwrite)
        config.resume_from_checkpoint = gathered(config.resume_from_checkpoint)[0]
        yield


def _take_folders(stack: ExitStack, config: Any, resume: bool, overwrite: bool) -> None:
    if overwrite and (resume or config.resume_from_checkpoint is not None):
        raise ValueError("--resume and --overwrite exclude each other.")
    if resume and config.checkpoint_path is None:
        raise ValueError("'checkpoint_path' is null, so there is no checkpoint to resume from.")
    for name in ("output_path", "checkpoint_path"):
        if (folder := getattr(config, name)) is not None:
            stack.enter_context(only_writer(folder, name))
    if resume:
        config.resume_from_checkpoint = str(newest_checkpoint(config.checkpoint_path))
    earlier = list_checkpoints(config.checkpoint_path) if config.checkpoint_path is not None else []
    if overwrite:
        for checkpoint in earlier:
            shutil.rmtree(checkpoint)
    else:
        _refuse_to_replace(config, earlier)


def _refuse_to_replace(config: Any, earlier: list[Path]) -> None:
    """Raise a ValueError if the run would replace checkpoints or an SAE of another run."""
    how = "replace it with --overwrite (run(overwrite=True) in Python), or choose another --output_path."
    resumed, output = config.resume_from_checkpoint, config.output_path
    if earlier and resumed is None:
        raise ValueError(
            f"{str(config.checkpoint_path)!r} holds checkpoints of an earlier run, the newest after "
            f"{_tokens_in(earlier[-1])} tokens: continue it with --resume, {how}"
        )
    if output is None or not (Path(output) / SAE_WEIGHTS_FILENAME).is_file():
        return
    if resumed is None:
        raise ValueError(f"{str(output)!r} holds the SAE of a finished run: {how}")
    where = (_settings_in(Path(resumed)) or {}).get("output_path", output)
    moved_together = Path(output).resolve() in Path(resumed).resolve().parents
    if not moved_together and (where is None or Path(where).resolve() != Path(output).resolve()):
        raise ValueError(
            f"output_path must be {str(where)!r}, as in the checkpoint that is resumed, or a folder without the SAE of "
            f"a finished run, got {str(output)!r}"
        )


def seal_checkpoint(folder: Path) -> None:
    """Finish a checkpoint whose files are all written: with their checksums, and a word that there are such."""
    path = folder / SAE_CFG_FILENAME
    values = read_object(path)
    values["metadata"] = values.get("metadata", {}) | {_SEALED: True}
    atomic_write_text(path, json.dumps(values))
    write_checksums(folder)


def _check_files(folder: Path) -> None:
    """Raise a ValueError unless the files of a checkpoint are those that were written, or can be read at least."""
    needed = (TRAINER_STATE_FILENAME, SAE_WEIGHTS_FILENAME, SAE_CFG_FILENAME)
    for name in (CHECKSUMS_FILENAME, SAE_CFG_FILENAME) if is_of_ranks(folder) else needed:
        if not (folder / name).is_file():
            raise ValueError(f"{str(folder)!r} is no complete checkpoint: it has no {name}.")
    verify_checksums(folder)
    if (folder / CHECKSUMS_FILENAME).is_file():
        return
    # One of version 0.1, which wrote none.
    metadata = read_object(folder / SAE_CFG_FILENAME).get("metadata")
    if isinstance(metadata, dict) and _SEALED in metadata:
        raise ValueError(f"{str(folder)!r} is damaged: {CHECKSUMS_FILENAME!r} is missing.")
    for path in folder.glob("*.json"):
        read_object(path)
    with reading(folder / ACTIVATION_SCALER_CFG_FILENAME):
        (scaler := ActivationScaler()).load(folder / ACTIVATION_SCALER_CFG_FILENAME)
        if not isinstance(scaler.scaling_factor, int | float | None):
            raise ValueError(f"scaling_factor must be a number or null, got {shown(scaler.scaling_factor)}")
    for path in folder.glob("*.safetensors"):
        tensor_shapes(path)
    with reading(folder / TRAINER_STATE_FILENAME):
        state = torch.load(folder / TRAINER_STATE_FILENAME, map_location="cpu")
        for name in ("optimizer", "lr_scheduler", "n_training_samples", "n_training_steps", "coefficient_schedulers"):
            state[name]


def _settings_in(folder: Path) -> dict[str, Any] | None:
    """The settings of the run that wrote a checkpoint or an SAE, as they were kept beside it; None if they were not."""
    path = folder / RUNNER_CFG_FILENAME
    if not path.is_file():
        return None
    settings = read_object(path)
    if isinstance(sae := settings.get("sae"), dict) and sae.get("architecture") == ARCHITECTURE:
        settings["sae"] = EARLIER_GATE | sae
    return settings


def differing_settings(folder: Path | str, config: Any, besides: Collection[str] = ()) -> list[str]:
    """``NAME must be THAT, got THIS`` for each setting in which a run differs from the one that wrote a folder.

    Args:
        folder: of a checkpoint or an SAE; without settings kept beside it, nothing differs.
        config: the run's configuration, complete.
        besides: further settings that may differ.
    """
    earlier = _flat(_settings_in(Path(folder)) or {})
    now = _flat(json.loads(json.dumps(config.to_dict())))
    may_change = _MAY_CHANGE | set(besides)
    if any(earlier.get(name) != now.get(name) for name in _TOKENS):
        may_change |= {"lr_warm_up_steps", "lr_decay_steps"}  # those of a short run are scaled to it
    found = {name: value for name, value in now.items() if value is not None or name not in _FOUND}
    measures = {name for name in found if name.startswith(("eval_", "n_eval_"))}
    return differing(earlier, found, may_change | measures)


def differing(earlier: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str]) -> list[str]:
    """``NAME must be THAT, got THIS``, by name, for each setting that both have, and have otherwise."""
    return [
        f"{name} must be {shown(earlier[name])}, got {shown(now[name])}"
        for name in sorted((earlier.keys() & now.keys()).difference(may_change))
        if earlier[name] != now[name]
    ]


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of the SAE by dotted name."""
    sae = settings.get("sae")
    inner = {f"sae.{key}": value for key, value in sae.items()} if isinstance(sae, dict) else {}
    return {key: value for key, value in settings.items() if key != "sae"} | inner


def _check_length(folder: Path, config: Any) -> None:
    """Raise a ValueError if a run would have ended before a checkpoint, with the step that reaches its tokens."""
    with reading(folder):
        if is_of_ranks(folder):
            behind = int(read_object(folder / COUNTS_FILENAME)["n_training_samples"])
        else:
            state = torch.load(folder / TRAINER_STATE_FILENAME, map_location="cpu", mmap=True)
            behind = int(state["n_training_samples"])
    (name,) = (name for name in _TOKENS if hasattr(config, name))
    if behind - config.to_sae_trainer_config().train_batch_size_samples >= (asked := getattr(config, name)):
        raise must_be(name, f"at least the {behind} of the checkpoint {str(folder)!r}, which is resumed", asked)


def check_checkpoint(folder: Path | str, sae: TrainingSAE[Any], config: Any) -> None:
    """Raise a ValueError unless ``folder`` holds a complete checkpoint of an SAE like ``sae``, of the same run.

    Compared are the files, their checksums, the architecture, the name and shape of every tensor, and the settings.
    """
    folder = Path(folder)
    _check_files(folder)
    saved = read_object(folder / SAE_CFG_FILENAME)
    if (architecture := saved.get("architecture")) != sae.cfg.architecture():
        raise ValueError(
            f"The checkpoint {str(folder)!r} holds an SAE of the architecture {architecture!r}; "
            f"this run trains {sae.cfg.architecture()!r}."
        )
    is_finished = "l0" in (saved.get("metadata") or {})
    if is_finished and (scaled := sae.cfg.normalize_activations) != saved.get("normalize_activations", scaled):
        why = f"as what scales its activations ({scaled}) is folded into a finished SAE"
        raise must_be("resume_from_checkpoint", f"a checkpoint from before the end of its run, {why}", str(folder))
    if others := differing_settings(folder, config):
        raise ValueError(f"{'; '.join(others)} (as in the checkpoint {str(folder)!r}, which is resumed)")
    _check_length(folder, config)
    expected = sae.state_dict()
    sae.process_state_dict_for_saving(expected)
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if is_of_ranks(folder):
        found = {name: tuple(tensor.shape) for name, tensor in sae_in_shards(folder).items()}
    else:
        found = tensor_shapes(folder / SAE_WEIGHTS_FILENAME)
    if missing := sorted(wanted.keys() - found.keys()):
        raise ValueError(f"The checkpoint {str(folder)!r} lacks the tensor {missing[0]!r}.")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(
                f"In the checkpoint {str(folder)!r} the tensor {name!r} has shape {found[name]}; "
                f"this run needs {shape}."
            )
