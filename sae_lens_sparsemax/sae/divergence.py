"""The one mistake of a training that its host may want to tell from others: other weights would not have made it."""

from __future__ import annotations

import torch


class Diverged(ValueError):
    """Scores, a loss or weights that are no longer finite, of activations that are."""


def came_to_nothing(step: int, problem: str, activations: torch.Tensor) -> Diverged:
    """What is said of a training step, counted from 1, over (N, d) activations."""
    return Diverged(
        f"training step {step} came to nothing: {problem}; lower the learning rate or leave "
        f"out activations as large as there (up to {activations.abs().max().item():.4g})"
    )
