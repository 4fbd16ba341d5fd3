"""The checkpoints in a folder: which there are, which to continue from, and whether one fits the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, TRAINER_STATE_FILENAME
from sae_lens.saes.sae import TrainingSAE
from safetensors import SafetensorError, safe_open


def list_checkpoints(folder: Path | str) -> list[Path]:
    """Checkpoints that can be resumed, oldest first: the folders named after the tokens trained on."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdigit() and (path / TRAINER_STATE_FILENAME).is_file()]
    return sorted(found, key=lambda path: int(path.name))


def newest_checkpoint(folder: Path | str) -> Path:
    """The checkpoint with the most training behind it.

    Raises:
        ValueError: there is none.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ValueError(f"There is no checkpoint to resume from in {str(folder)!r}.")
    return checkpoints[-1]


def prepare_output(config: Any, *, resume: bool, overwrite: bool) -> None:
    """Make ``config`` continue its own newest checkpoint, or see that none of an earlier run is in the way.

    Args:
        config: a runner config; ``resume_from_checkpoint`` is set on it if ``resume``.
        resume: continue from the newest checkpoint in ``checkpoint_path``.
        overwrite: delete the checkpoints there.

    Raises:
        ValueError: nothing to resume, or checkpoints that nobody said what to do with.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other.")
    folder = config.checkpoint_path
    if resume:
        if folder is None:
            raise ValueError("'checkpoint_path' is null, so there is no checkpoint to resume from.")
        config.resume_from_checkpoint = str(newest_checkpoint(folder))
        return
    earlier = list_checkpoints(folder) if folder is not None else []
    if earlier and not overwrite and config.resume_from_checkpoint is None:
        raise ValueError(
            f"{str(folder)!r} holds checkpoints of an earlier run, the newest after {earlier[-1].name} tokens: "
            "continue it with --resume, replace it with --overwrite, or choose another --output_path."
        )
    if overwrite:
        for checkpoint in earlier:
            shutil.rmtree(checkpoint)


def check_checkpoint(folder: Path | str, sae: TrainingSAE[Any]) -> None:
    """Raise a ValueError unless ``folder`` holds a complete checkpoint of an SAE like ``sae``.

    Compared are the files, the architecture, and the name and shape of every tensor.
    """
    folder = Path(folder)
    for name in (TRAINER_STATE_FILENAME, SAE_WEIGHTS_FILENAME, SAE_CFG_FILENAME):
        if not (folder / name).is_file():
            raise ValueError(f"{str(folder)!r} is no complete checkpoint: it has no {name}.")
    saved = json.loads((folder / SAE_CFG_FILENAME).read_text(encoding="utf-8")).get("architecture")
    if saved != sae.cfg.architecture():
        raise ValueError(
            f"The checkpoint {str(folder)!r} holds an SAE of the architecture {saved!r}; "
            f"this run trains {sae.cfg.architecture()!r}."
        )
    expected = sae.state_dict()
    sae.process_state_dict_for_saving(expected)
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    found = _tensor_shapes(folder / SAE_WEIGHTS_FILENAME)
    if missing := sorted(wanted.keys() - found.keys()):
        raise ValueError(f"The checkpoint {str(folder)!r} lacks the tensor {missing[0]!r}.")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(
                f"In the checkpoint {str(folder)!r} the tensor {name!r} has shape {found[name]}; "
                f"this run needs {shape}."
            )


def _tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}.") from error
