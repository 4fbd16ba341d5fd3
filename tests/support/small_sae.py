"""Small sparsemax SAEs with random weights, and inputs for them."""

import torch
from sae_lens.saes.sae import TrainStepInput

from sae_lens_sparsemax import SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.sae.config import EARLIER_GATE

D_IN, D_SAE = 12, 80
DICTIONARIES = {"shared": {}, "with biases": {"encoder_bias": True}, "mlp": {"structure": "mlp"}}


def inputs(n: int = 40, d: int = D_IN, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(n, d) activations with a common offset, as residual streams have."""
    generator = torch.Generator().manual_seed(1)
    return (2 * torch.randn(n, d, generator=generator) + 1).to(dtype)


def small_sae(seed: int = 0, **settings) -> SparsemaxTrainingSAE:
    """A training SAE of one pass whose every parameter is away from its initialisation, biases included."""
    torch.manual_seed(seed)
    settings = {"d_in": D_IN, "d_sae": D_SAE, "target_l0": None, "gate_scale": 1.5} | EARLIER_GATE | settings
    sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(**settings))
    for parameter in sae.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    sae.b_dec_is_initialised.fill_(True)
    if sae.mean_acts is not None:
        sae.mean_acts += torch.rand_like(sae.mean_acts)
    return sae


def step_input(x: torch.Tensor, step: int = 0, l1: float = 0.0) -> TrainStepInput:
    return TrainStepInput(x, {"l1": l1}, None, step, False)


def dense(acts: torch.Tensor) -> torch.Tensor:
    return acts.to_dense() if acts.is_sparse else acts
