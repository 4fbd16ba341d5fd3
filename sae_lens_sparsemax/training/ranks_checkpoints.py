"""Checkpoints of a run over several processes: every rank writes its part, one step makes them a checkpoint.

The folder holds what that of one process holds, except that weights and the optimizer's averages are in the format of
``torch.distributed.checkpoint`` (``shards``), and each rank's position in its data in a folder of its own (``rank_0``,
…). It is hidden until the first rank has written the checksums of all files, and then renamed. Any number of processes
can go on from it, and from one of a single process: on the same mesh to the bit, else from an empty shuffle buffer.
"""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.training.sae_trainer import SAETrainer
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.distributed.tensor import DTensor, distribute_tensor

from sae_lens_sparsemax.files import atomic_directory, read_object, read_tensors, save_tensors, writing
from sae_lens_sparsemax.models.shards import SHARDS, is_of_ranks, read_shards, said_by_torch
from sae_lens_sparsemax.training.checkpoints import COUNTS_FILENAME, seal_checkpoint
from sae_lens_sparsemax.training.ranks import Ranks

logger = logging.getLogger(__name__)

_STATISTICS_FILENAME = "statistics.safetensors"
_COUNTS = ("n_training_samples", "n_training_steps", "n_frac_active_samples", "started_fine_tuning")


def save_checkpoint_of_ranks(
    trainer: SAETrainer[Any, Any], path: Path, ranks: Ranks, group: dist.ProcessGroup | None = None
) -> Future[None] | None:
    """Write a checkpoint of all ranks to ``path``, whole or not at all; they all call it, with statistics reconciled.

    Args:
        group: of all ranks, used for nothing else. The tensors are then copied to the CPU and written by a thread.

    Returns:
        With a group, what is done when the checkpoint is there, or could not be written; on ranks other than the first
        perhaps before.

    Raises:
        OSError: it could not be written, on the lowest rank where it could not; SystemExit on the others.
    """
    with ExitStack() as stack:
        new = path.with_name(f".{path.name}.new")
        with ranks.together():
            if ranks.is_first:
                new = stack.enter_context(atomic_directory(path))
        with ranks.together(), writing(path):
            own = new / _folder_of(ranks.rank)
            own.mkdir()
            if trainer.save_checkpoint_fn is not None:
                trainer.save_checkpoint_fn(checkpoint_path=own)
            if (own / RUNNER_CFG_FILENAME).is_file():  # the same on all
                (own / RUNNER_CFG_FILENAME).replace(new / RUNNER_CFG_FILENAME)
        with ranks.together(), writing(path):
            if ranks.is_first:
                _write_what_all_share(trainer, new, ranks)
        with ranks.together(), writing(path), said_by_torch():
            written: Any = None
            if group is None:
                save(_tensors(trainer), checkpoint_id=new / SHARDS)
            else:
                written = async_save(_tensors(trainer), checkpoint_id=new / SHARDS, process_group=group)
        if group is not None:
            return ThreadPoolExecutor(1).submit(
                _finish, stack.pop_all(), path, new if ranks.is_first else None, written
            )
        with ranks.together():
            if ranks.is_first:
                _finish(stack.pop_all(), path, new)
    return None


def _finish(stack: ExitStack, path: Path, new: Path | None, written: Future[Any] | None = None) -> None:
    """Make a checkpoint of the folder ``new``, on the first rank, when all ranks have written their tensors to it."""
    with stack, writing(path), said_by_torch():
        if written is not None:
            written.result()
        if new is not None:
            seal_checkpoint(new)


def load_checkpoint_of_ranks(trainer: SAETrainer[Any, Any], store: Any, folder: Path, ranks: Ranks | None) -> None:
    """Put a trainer, its SAE and this rank's store where they were when ``folder``, found to be whole, was written.

    Args:
        trainer: before its first step.
        store: the activations of this rank.
        folder: of ``save_checkpoint_of_ranks`` on any mesh, or of a run of one process.
        ranks: all ranks, which call it together; None in one process.
    """
    tensors = _tensors(trainer)
    if is_of_ranks(folder):
        state = _read_shards(folder, tensors, ranks)
    else:
        state = _read_whole_tensors(folder, tensors, trainer)
    optimizer: Any = get_optimizer_state_dict(trainer.sae, trainer.optimizer)
    for group, saved in zip(optimizer["param_groups"], state["param_groups"], strict=True):
        group.update({name: value for name, value in saved.items() if name != "params"}, betas=tuple(saved["betas"]))
    optimizer["state"] = tensors["optimizer"]
    set_optimizer_state_dict(trainer.sae, trainer.optimizer, optimizer)
    trainer.sae.cfg.gate_scale = read_object(folder / SAE_CFG_FILENAME)["gate_scale"]
    for name in _COUNTS:
        setattr(trainer, name, state[name])
    trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])
    for name, of_scheduler in state["coefficient_schedulers"].items():
        trainer.coefficient_schedulers[name].load_state_dict(of_scheduler)
    trainer.activation_scaler.load(folder / ACTIVATION_SCALER_CFG_FILENAME)
    trainer.n_forward_passes_since_fired.copy_(state["n_forward_passes_since_fired"])
    if ranks is None or ranks.is_first:  # see RanksTrainer.reconcile
        trainer.act_freq_scores.copy_(state["act_freq_scores"])
    mesh = [1, 1] if ranks is None else list(ranks.mesh.shape)
    if state["mesh"] == mesh:
        store.load_from_checkpoint(folder / _folder_of(0 if ranks is None else ranks.rank))
    else:
        logger.warning(
            "The checkpoint was made by %d × %d processes (data × concepts): weights, optimizer and statistics go on "
            "exactly, but the data are read from their beginning, with an empty shuffle buffer.",
            *state["mesh"],
        )


def _read_shards(folder: Path, tensors: dict[str, Any], ranks: Ranks | None) -> dict[str, Any]:
    """Fill the tensors, each rank its own part; returns the rest of the trainer's state."""
    read_shards(tensors, folder, alone=ranks is None)
    return read_object(folder / COUNTS_FILENAME) | read_tensors(folder / _STATISTICS_FILENAME)[0]


def _read_whole_tensors(folder: Path, tensors: dict[str, Any], trainer: SAETrainer[Any, Any]) -> dict[str, Any]:
    """The same from a checkpoint of one process, whose tensors every rank reads whole."""
    state = torch.load(folder / TRAINER_STATE_FILENAME, map_location="cpu")
    weights, _ = read_tensors(folder / SAE_WEIGHTS_FILENAME, beside=("format",))
    names = [name for name, _ in trainer.sae.named_parameters()]
    found = [(tensors["sae"], weights)]
    for number, averages in state["optimizer"]["state"].items():
        found.append((tensors["optimizer"][names[number]], averages))
    for targets, wholes in found:
        for name, target in targets.items():
            whole = wholes[name].to(target.device)
            if isinstance(target, DTensor):
                whole = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
            target.copy_(whole)
    return state | {"param_groups": state["optimizer"]["param_groups"], "mesh": [1, 1]}


def _tensors(trainer: SAETrainer[Any, Any]) -> dict[str, Any]:
    """Weights and the optimizer's averages, divided among ranks or alike on all; ``load`` writes to them."""
    optimizer: Any = get_optimizer_state_dict(trainer.sae, trainer.optimizer)
    return {"sae": trainer.sae.state_dict(), "optimizer": optimizer["state"]}


def _write_what_all_share(trainer: SAETrainer[Any, Any], folder: Path, ranks: Ranks) -> None:
    (folder / SAE_CFG_FILENAME).write_text(json.dumps(trainer.sae.cfg.to_dict()))
    save_tensors({"sparsity": trainer.log_feature_sparsity}, folder / SPARSITY_FILENAME)
    trainer.activation_scaler.save(str(folder / ACTIVATION_SCALER_CFG_FILENAME))
    names = ("n_forward_passes_since_fired", "act_freq_scores")
    save_tensors({name: getattr(trainer, name) for name in names}, folder / _STATISTICS_FILENAME)
    counts = {name: getattr(trainer, name) for name in _COUNTS}
    counts["mesh"] = list(ranks.mesh.shape)
    counts["lr_scheduler"] = trainer.lr_scheduler.state_dict()
    counts["param_groups"] = [
        {name: value for name, value in group.items() if name != "params"} for group in trainer.optimizer.param_groups
    ]
    counts["coefficient_schedulers"] = {
        name: scheduler.state_dict() for name, scheduler in trainer.coefficient_schedulers.items()
    }
    (folder / COUNTS_FILENAME).write_text(json.dumps(counts))


def _folder_of(rank: int) -> str:
    return f"rank_{rank}"
