"""Checkpoints of a run over several processes: every rank writes its part, one step makes them a checkpoint.

The folder holds what that of one process holds, except that weights and the optimizer's averages are in the format of
``torch.distributed.checkpoint`` (``shards``), and each rank's position in its data in a folder of its own (``rank_0``,
…). It is hidden until the first rank has written the checksums of all files, and then renamed. Any number of processes
can go on from it: as many on the same mesh do so to the bit, others from an empty shuffle buffer.

But: torch writes the list of what is in ``shards`` as a pickle, so a folder is read only once its checksums are right.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.training.sae_trainer import SAETrainer
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from sae_lens_sparsemax.files import atomic_directory, read_object, read_tensors, save_tensors, writing
from sae_lens_sparsemax.training.checkpoints import SHARDS, seal_checkpoint
from sae_lens_sparsemax.training.mesh import Ranks

logger = logging.getLogger(__name__)

_COUNTS_FILENAME = "trainer_state.json"
_STATISTICS_FILENAME = "statistics.safetensors"
_COUNTS = ("n_training_samples", "n_training_steps", "n_frac_active_samples", "started_fine_tuning")


def save_checkpoint_of_ranks(trainer: SAETrainer[Any, Any], path: Path, ranks: Ranks) -> None:
    """Write a checkpoint of all ranks to ``path``, whole or not at all; they all call it, with statistics reconciled.

    Raises:
        OSError: it could not be written, on the lowest rank where it could not; SystemExit on the others.
    """
    with ExitStack() as stack:
        new = path.with_name(f".{path.name}.new")
        with ranks.together():
            if ranks.is_first:
                new = stack.enter_context(atomic_directory(path))
        with ranks.together(), writing(path), _said_by_torch():
            save(_tensors(trainer), checkpoint_id=new / SHARDS)
        with ranks.together(), writing(path):
            own = new / _folder_of(ranks.rank)
            own.mkdir()
            if trainer.save_checkpoint_fn is not None:
                trainer.save_checkpoint_fn(checkpoint_path=own)
            if (own / RUNNER_CFG_FILENAME).is_file():  # the same on all
                (own / RUNNER_CFG_FILENAME).replace(new / RUNNER_CFG_FILENAME)
        with ranks.together():
            if ranks.is_first:
                _write_what_all_share(trainer, new, ranks)
                seal_checkpoint(new)
                stack.close()


def load_checkpoint_of_ranks(trainer: SAETrainer[Any, Any], store: Any, folder: Path, ranks: Ranks | None) -> None:
    """Put a trainer, its SAE and this rank's store where they were when ``folder``, found to be whole, was written.

    Args:
        trainer: before its first step.
        store: the activations of this rank.
        folder: of ``save_checkpoint_of_ranks``, on any mesh.
        ranks: all ranks, which call it together; None in one process.
    """
    tensors = _tensors(trainer)
    with _said_by_torch(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant to be
        load(tensors, checkpoint_id=folder / SHARDS, no_dist=ranks is None)
    counts = read_object(folder / _COUNTS_FILENAME)
    optimizer: Any = get_optimizer_state_dict(trainer.sae, trainer.optimizer)
    for group, saved in zip(optimizer["param_groups"], counts["param_groups"], strict=True):
        group.update(saved, betas=tuple(saved["betas"]))
    optimizer["state"] = tensors["optimizer"]
    set_optimizer_state_dict(trainer.sae, trainer.optimizer, optimizer)
    trainer.sae.cfg.gate_scale = read_object(folder / SAE_CFG_FILENAME)["gate_scale"]
    for name in _COUNTS:
        setattr(trainer, name, counts[name])
    trainer.lr_scheduler.load_state_dict(counts["lr_scheduler"])
    for name, state in counts["coefficient_schedulers"].items():
        trainer.coefficient_schedulers[name].load_state_dict(state)
    trainer.activation_scaler.load(folder / ACTIVATION_SCALER_CFG_FILENAME)
    statistics, _ = read_tensors(folder / _STATISTICS_FILENAME, trainer.cfg.device)
    trainer.n_forward_passes_since_fired.copy_(statistics["n_forward_passes_since_fired"])
    if ranks is None or ranks.is_first:  # see RanksTrainer.reconcile
        trainer.act_freq_scores.copy_(statistics["act_freq_scores"])
    if counts["mesh"] == _mesh_of(ranks):
        store.load_from_checkpoint(folder / _folder_of(0 if ranks is None else ranks.rank))
    else:
        logger.warning(
            "The checkpoint was made by %d × %d processes (data × concepts): weights, optimizer and statistics go on "
            "exactly, but the data are read from their beginning, with an empty shuffle buffer.",
            *counts["mesh"],
        )


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
    counts["mesh"] = _mesh_of(ranks)
    counts["lr_scheduler"] = trainer.lr_scheduler.state_dict()
    counts["param_groups"] = [
        {name: value for name, value in group.items() if name != "params"} for group in trainer.optimizer.param_groups
    ]
    counts["coefficient_schedulers"] = {
        name: scheduler.state_dict() for name, scheduler in trainer.coefficient_schedulers.items()
    }
    (folder / _COUNTS_FILENAME).write_text(json.dumps(counts))


def _mesh_of(ranks: Ranks | None) -> list[int]:
    return [1, 1] if ranks is None else list(ranks.mesh.shape)


def _folder_of(rank: int) -> str:
    return f"rank_{rank}"


@contextmanager
def _said_by_torch() -> Iterator[None]:
    """What went wrong on some rank as an error of Python's, not as torch's, which has the tracebacks of all ranks."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error
