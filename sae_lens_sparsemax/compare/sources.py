"""What the activations of a comparison come from, as the runs see it, and what sources that run a model share."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from sae_lens import SAE

from sae_lens_sparsemax.activations.cache_reader import ActivationTable
from sae_lens_sparsemax.activations.cache_writer import SHARD_BYTES, Batches, CacheWriter
from sae_lens_sparsemax.compare.config import CompareConfig
from sae_lens_sparsemax.compare.identity import fingerprint
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction

logger = logging.getLogger(__name__)

VALIDATION = "validation"
"""Name of the set on which the best learning rate is chosen; it is never reported as a result."""

TRAIN = "train"
"""Name of the activations that are trained on."""

Metrics = dict[str, float | int]


class ComparedActivations(Protocol):
    """Training batches that are the same for every SAE, and the measures an SAE is judged by."""

    cfg: CompareConfig
    """The settings of the comparison."""
    d_in: int
    """Width of the activations."""
    fingerprint: str
    """Changes when anything about the activations changes; runs of another fingerprint are redone."""
    chosen_fingerprint: str
    """Changes when the settings of `evaluate_chosen` change; only those measures are taken again then."""
    metadata: dict[str, Any]
    """What an SAE trained here records about where it belongs (model, hook, context size, …)."""

    def batches(self, seed: int) -> Iterator[torch.Tensor]:
        """Training batches of shape (batch_size, d_in) without end, the same for the same seed."""
        ...

    def mean(self) -> torch.Tensor:
        """Mean of the training activations, shape (d_in,), float32."""
        ...

    def check_start(self, sae: SAE[Any], name: str) -> None:
        """Refuse, with a ValueError, a run whose untrained SAE has what training is to find."""
        ...

    def evaluate(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Measures of an inference SAE by name of the evaluation set, `VALIDATION` among them."""
        ...

    def evaluate_chosen(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Further measures by evaluation set, too slow for every run; taken at the best learning rates. A set that
        could have some has an entry, empty where none was asked for."""
        ...


class CapturedActivations(ABC):
    """`ComparedActivations` of a model that reads its data once: they are kept in caches, one for each set.

    Args:
        cfg: the settings of the comparison.
        settings: all of them that decide the activations; the caches lie in a folder named after them.
    """

    unit: str
    """What the model reads: images or contexts."""

    def __init__(self, cfg: CompareConfig, settings: dict[str, Any]) -> None:
        self.cfg = cfg
        self.settings = json.loads(json.dumps(settings))  # as a manifest gives them back
        n_tokens = [cfg.n_stored_tokens, cfg.n_validation_tokens, cfg.n_evaluation_tokens]
        self.fingerprint = fingerprint(settings | {"n_tokens": n_tokens})
        activations = Path(cfg.output_path) / "activations"
        self.folder = activations / fingerprint(settings)
        if earlier := sorted(path.parent for path in activations.glob("*/*/complete.json")):
            logger.warning(
                "Activations of an earlier version, in %s, are not read; they are computed again. Delete the folder to "
                "free its space.",
                earlier[0],
            )

    def capture(self) -> None:
        """Store what is not there yet: activations to train on, to choose learning rates on, and to report on."""
        cfg = self.cfg
        # The short ones first: what is wrong with one of them is found before the long one is stored.
        sizes = {VALIDATION: cfg.n_validation_tokens, **dict.fromkeys(cfg.evaluation_sets, cfg.n_evaluation_tokens)}
        self.held_out = {name: self._table(name, n_tokens) for name, n_tokens in sizes.items()}
        self.train = self._table(TRAIN, cfg.n_stored_tokens)
        longer = cfg.n_longest_tokens > cfg.n_stored_tokens
        self._stored = self._table(TRAIN, cfg.n_longest_tokens) if longer else self.train
        self.d_in = self.train.d_in

    def batches(self, seed: int) -> Iterator[torch.Tensor]:
        """Training batches; every epoch is a permutation, fixed by the seed, of as many tokens as an arm trains on
        that is not longer than others; longer arms go on with further ones."""
        return self._stored.shuffled(self.cfg.batch_size, seed, len(self.train))

    def mean(self) -> torch.Tensor:
        """Mean of the activations that every arm trains on, shape (d_in,)."""
        return self.train.mean

    def check_start(self, sae: SAE[Any], name: str) -> None:  # noqa: B027 (the protocol's)
        """Nothing: what is true of a model's activations, no initialisation knows."""

    def evaluate(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Reconstruction and sparsity on the held-out activations of every set."""
        return {
            name: asdict(evaluate_reconstruction(sae, table.in_order(self.cfg.batch_size)))
            for name, table in self.held_out.items()
        }

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the activations at the hook."""

    @property
    @abstractmethod
    def batch(self) -> tuple[int, int]:
        """Inputs that the model sees at once, and tokens of each."""

    @abstractmethod
    def stream(self, name: str) -> Batches:
        """One pass over the inputs of a set, the same every time."""

    def _table(self, name: str, n_tokens: int) -> ActivationTable:
        folder = self.folder / name.replace(" ", "_")
        made_from = self.settings | {"set": name}
        try:
            return ActivationTable(folder, n_tokens, made_from)
        except ValueError as error:  # absent, unfinished or damaged: stored, as far as it is not there
            logger.info("%s", error)
        dtype = self.cfg.activation_dtype
        writer = CacheWriter(folder, made_from, self.width, dtype, self.unit, self.batch, SHARD_BYTES)
        description = f"Activations, {name}"
        manifest = writer.write(self.stream(name), n_tokens, description)
        if manifest.n_tokens < n_tokens:
            raise ValueError(f"{description}: the data gave only {manifest.n_tokens} of {n_tokens} activations")
        return ActivationTable(folder, n_tokens, made_from)
