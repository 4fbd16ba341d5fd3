"""What the activations of a comparison come from, as the runs see it."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from sae_lens import SAE

VALIDATION = "validation"
"""Name of the set on which the best learning rate is chosen; it is never reported as a result."""

Metrics = dict[str, float | int]


class ActivationSource(Protocol):
    """Training batches that are the same for every SAE, and the measures an SAE is judged by."""

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

    def evaluate(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Measures of an inference SAE by name of the evaluation set, `VALIDATION` among them."""
        ...

    def evaluate_chosen(self, sae: SAE[Any]) -> dict[str, Metrics]:
        """Further measures by evaluation set, too slow for every run; taken at the best learning rates."""
        ...
