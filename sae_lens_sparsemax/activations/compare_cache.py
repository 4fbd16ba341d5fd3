"""
Activations of a model on disk, computed once and read by every run.

Shards are safetensors files of about 256 MB, read through memory maps, so that a training run touches only
the rows of its batches. Each shard is written atomically together with the number of batches seen so far; an
interrupted capture goes on after its last shard.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import torch
from sae_lens.training.activations_store import ActivationsStore
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from sae_lens_sparsemax.files import save_json

SHARD_BYTES = 256 * 2**20
_ROWS_AT_A_TIME = 4096
_COMPLETE = "complete.json"
_TENSOR = "tokens"


class ActivationShards:
    """Stored activations as one (n, d_in) table of rows, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.shards = [_read_tensor(path) for path in _shard_paths(folder)]
        sizes = torch.tensor([0] + [len(shard) for shard in self.shards])
        self.offsets = sizes.cumsum(0)
        self.d_in = self.shards[0].shape[1]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """The rows with these numbers, shape (len(index), d_in), float32, in the order of `index`."""
        out = torch.empty(len(index), self.d_in)
        shard_of_row = torch.searchsorted(self.offsets, index, right=True) - 1
        for number in shard_of_row.unique().tolist():
            here = shard_of_row == number
            out[here] = self.shards[number][index[here] - self.offsets[number]].float()
        return out

    def in_order(self, batch_size: int) -> Iterator[torch.Tensor]:
        """All rows once, in the order they were stored, float32."""
        for shard in self.shards:
            for batch in shard.split(batch_size):
                yield batch.float()

    def mean(self) -> torch.Tensor:
        """Mean of all rows, shape (d_in,), summed in float64 and given as float32; computed once."""
        return self._mean

    @cached_property
    def _mean(self) -> torch.Tensor:
        total = torch.zeros(self.d_in, dtype=torch.float64)
        for batch in self.in_order(_ROWS_AT_A_TIME):
            total += batch.double().sum(0)
        return (total / len(self)).float()

    def shuffled(self, batch_size: int, seed: int) -> Iterator[torch.Tensor]:
        """
        Batches without end: every epoch is a permutation of all rows that depends on `seed` and epoch alone.

        The rows left over at the end of an epoch that do not fill a batch are dropped.
        """
        if batch_size > len(self):
            raise ValueError(f"a batch of {batch_size} activations needs more than the {len(self)} stored")
        generator = torch.Generator().manual_seed(seed)
        while True:
            for index in torch.randperm(len(self), generator=generator).split(batch_size):
                if len(index) == batch_size:
                    yield self.rows(index)


def capture_activations(
    batches: Callable[[int], Iterator[torch.Tensor]],
    folder: Path,
    n_tokens: int,
    d_in: int,
    dtype: torch.dtype,
    description: str,
    max_norm: float = math.inf,
) -> ActivationShards:
    """
    Store the first `n_tokens` activations of a stream in `folder`, or what is still missing.

    The stream must be the same on every call; the caller names the folder after all settings that matter.

    Args:
        batches: Called with the number of batches to skip, gives those that follow, of shape (n, d_in).
        folder: Where the shards are, or will be.
        n_tokens: Activations to keep.
        d_in: Width of the activations.
        dtype: Precision on disk.
        description: Label of the progress bar.
        max_norm: Activations with a larger norm are left out.

    Raises:
        ValueError: If the disk is too small, or the data has too few tokens.
    """
    if (folder / _COMPLETE).exists():
        return ActivationShards(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = _progress(folder)
    n_stored, n_batches, n_left_out = done["rows"], done["batches"], done["left_out"]
    _check_disk_space(folder, (n_tokens - n_stored) * d_in * dtype.itemsize)
    stream = batches(n_batches)
    shard_rows = max(1, SHARD_BYTES // (d_in * dtype.itemsize))
    pending: list[torch.Tensor] = []
    n_pending = 0
    with tqdm(total=n_tokens, initial=n_stored, desc=description, unit="token") as bar:
        while n_stored < n_tokens:
            acts = next(stream, None)
            if acts is None:
                raise ValueError(f"{description}: the data gave only {n_stored + n_pending} of {n_tokens} activations")
            n_batches += 1
            small = acts.norm(dim=-1) <= max_norm
            n_left_out += int((~small).sum())
            acts = acts[small][: n_tokens - n_stored - n_pending].to("cpu", dtype)
            pending.append(acts)
            n_pending += len(acts)
            bar.update(len(acts))
            if n_pending >= shard_rows or n_stored + n_pending >= n_tokens:
                _write_shard(folder, torch.cat(pending), n_batches, n_left_out)
                n_stored += n_pending
                pending, n_pending = [], 0
    save_json({"rows": n_stored, "left_out_for_their_norm": n_left_out}, folder / _COMPLETE)
    return ActivationShards(folder)


def capture_tokens(make_store: Callable[[], ActivationsStore], path: Path, n_tokens: int) -> torch.Tensor:
    """
    The first contexts of a store, at least `n_tokens` tokens, shape (n, context), kept in the file `path`.

    The store is only made where the file does not exist yet. Raises `ValueError` if the text is too short.
    """
    if not path.exists():
        store = make_store()
        batches: list[torch.Tensor] = []
        while sum(batch.numel() for batch in batches) < n_tokens:
            try:
                batches.append(store.get_batch_tokens(raise_at_epoch_end=True).cpu())
            except StopIteration:
                raise ValueError(
                    f"the text of {path.parent.name} has fewer than the {n_tokens} tokens asked for"
                ) from None
        _save_tensor(torch.cat(batches), path, {})
    return _read_tensor(path)


def _shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("activations-*.safetensors"))


def _read_tensor(path: Path) -> torch.Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(_TENSOR)


def _write_shard(folder: Path, rows: torch.Tensor, n_batches: int, n_left_out: int) -> None:
    path = folder / f"activations-{len(_shard_paths(folder)):05d}.safetensors"
    metadata = {"rows": len(rows), "batches": n_batches, "left_out": n_left_out}
    _save_tensor(rows, path, {key: str(value) for key, value in metadata.items()})


def _save_tensor(tensor: torch.Tensor, path: Path, metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file({_TENSOR: tensor.contiguous()}, temporary, metadata=metadata)
    temporary.replace(path)


def _progress(folder: Path) -> dict[str, int]:
    """Rows stored, and batches read and activations left out by the end of the last shard."""
    progress = {"rows": 0, "batches": 0, "left_out": 0}
    for path in _shard_paths(folder):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        progress["rows"] += int(metadata["rows"])
        progress["batches"], progress["left_out"] = int(metadata["batches"]), int(metadata["left_out"])
    return progress


def _check_disk_space(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    # The SAEs and results of the runs need room as well.
    if n_bytes > 0.9 * free:
        raise ValueError(
            f"the activations need {n_bytes / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free: "
            "store fewer, or use activation_dtype float16 or bfloat16"
        )
