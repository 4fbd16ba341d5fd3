"""The training passes that are compared: forward with loss, and backward, on the same activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sae_lens import TopKTrainingSAE
from sae_lens.saes.sae import TrainingSAE, TrainStepInput

from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.sae.training import SparsemaxTrainingSAE
from tests.benchmark.forms import gate_scale_for, topk_config
from tests.benchmark.naive import NaiveTrainingSAE


@dataclass(frozen=True)
class Problem:
    """N tokens of d_in activations, M concepts, and how many of them a token selects on average."""

    n_tokens: int
    d_in: int
    d_sae: int
    support: int
    device: str = "cpu"

    def activations(self) -> torch.Tensor:
        """(N, d_in) Gaussian activations, the same for every pass."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.n_tokens, self.d_in, generator=generator).to(self.device)


def floor_pass(problem: Problem) -> Callable[[], None]:
    """The score product alone, into memory that is there already: N·d·M multiplications."""
    x = problem.activations()
    keys = torch.randn(problem.d_sae, problem.d_in, device=problem.device)
    scores = x.new_empty(problem.n_tokens, problem.d_sae)

    def run() -> None:
        torch.mm(x, keys.T, out=scores)

    return run


def sparsemax_pass(
    problem: Problem,
    activations: str = "scores",
    structure: str = "cross_attention",
    alpha: float = 2.0,
    passes: int = 1,
    refinements: int = 0,
    activation_floor: float = 0.0,
    sae_class: type[SparsemaxTrainingSAE] = SparsemaxTrainingSAE,
) -> Callable[[], None]:
    """This library's training pass, with the gate set so that supports have the size asked for."""
    cfg = SparsemaxTrainingSAEConfig(
        d_in=problem.d_in,
        d_sae=problem.d_sae,
        activations=activations,  # type: ignore[arg-type]
        structure=structure,  # type: ignore[arg-type]
        alpha=alpha,
        passes=passes,
        refinements=refinements,
        activation_floor=activation_floor,
        target_l0=None,
        device=problem.device,
    )
    torch.manual_seed(0)
    sae = sae_class(cfg)
    x = problem.activations()
    sae.gate_scale = gate_scale_for(sae, x, problem.support)
    return _training_pass(sae, x)


def naive_pass(problem: Problem) -> Callable[[], None]:
    """Eq. 3 as written, for the paper's own activations: the probabilities."""
    return sparsemax_pass(problem, activations="probabilities", sae_class=NaiveTrainingSAE)


def topk_pass(problem: Problem, sparse: bool) -> Callable[[], None]:
    """SAELens's TopK with k equal to the support, with dense activations (its default) or sparse ones."""
    size = {"d_in": problem.d_in, "d_sae": problem.d_sae, "device": problem.device}
    cfg = topk_config(problem.support, sparse, **size)
    return _training_pass(TopKTrainingSAE(cfg), problem.activations())


def _training_pass(sae: TrainingSAE, x: torch.Tensor) -> Callable[[], None]:
    step = TrainStepInput(sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False)

    def run() -> None:
        sae.zero_grad()
        sae.training_forward_pass(step).loss.backward()

    return run
