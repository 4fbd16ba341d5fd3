"""The SAEs that are compared: this library's and SAELens's own, of one size and with as many concepts per token.

But: they are untrained. What is set is how many concepts they select, on which the cost of most of them depends.
"""

from __future__ import annotations

import dataclasses
import tempfile
from typing import Any

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.saes.sae import SAEConfig, TrainStepInput

from sae_lens_sparsemax.sae.config import BEST_GATE, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.sae.presets import PRESETS
from sae_lens_sparsemax.sae.training import SparsemaxTrainingSAE
from sae_lens_sparsemax.settings.sentences import must_be

FORMS = {
    "sparsemax": "as configured",
    "one_pass": "one pass",
    "topk": "SAELens TopK, sparse",
    "batchtopk": "SAELens BatchTopK",
    "jumprelu": "SAELens JumpReLU",
    "naive": "naive sparsemax",
}
# Enough to set a gate or a threshold by.
_SAMPLE = 64


def label(form: str, own: SparsemaxTrainingSAEConfig) -> str:
    """What tables call a form of a configuration: the configuration itself is "the default" where its gate is."""
    is_default = all(getattr(own, name) == value for name, value in BEST_GATE.items())
    return "the default" if form == "sparsemax" and is_default else FORMS[form]


def config_of(form: str, own: SparsemaxTrainingSAEConfig) -> TrainingSAEConfig:
    """The configuration of a form: the size, type, device, inputs and concepts per token are those of `own`.

    Raises:
        ValueError: the form takes a number of concepts per token which `own` does not name.
    """
    if form == "sparsemax":
        return own
    if form in ("one_pass", "naive"):
        return dataclasses.replace(own, **PRESETS["one_pass" if form == "one_pass" else "sparsemax"])
    shared = {field.name: getattr(own, field.name) for field in dataclasses.fields(SAEConfig)}
    del shared["metadata"]  # says what the SAE is
    if own.target_l0 is None:
        raise must_be("sae.target_l0", f"a number for the form {form!r}", None)
    if form == "topk":
        if own.target_l0 != int(own.target_l0):
            raise must_be("sae.target_l0", "a whole number for the form 'topk'", own.target_l0)
        return topk_config(int(own.target_l0), sparse=True, **shared)
    if form == "batchtopk":
        return BatchTopKTrainingSAEConfig(k=own.target_l0, **shared)
    return JumpReLUTrainingSAEConfig(**shared)


def topk_config(k: int, sparse: bool, **shared: Any) -> TopKTrainingSAEConfig:
    """SAELens's TopK with dense activations (its default) or sparse ones."""
    # Sparse activations scaled by decoder norms have no backward pass in SAELens 6.54.
    return TopKTrainingSAEConfig(k=k, use_sparse_activations=sparse, rescale_acts_by_decoder_norm=not sparse, **shared)


def select(sae: TrainingSAE[Any], x: torch.Tensor, support: float) -> None:
    """Let an SAE select `support` concepts on average of (N, d_in) activations; TopK and BatchTopK do so anyway."""
    if isinstance(sae, SparsemaxTrainingSAE):
        sae.gate_scale = gate_scale_for(sae, x, support)
    elif isinstance(sae, JumpReLUTrainingSAE):
        with torch.no_grad():
            hidden_pre = sae.encode_with_hidden_pre(x[:_SAMPLE])[1]
            strongest = hidden_pre.flatten().topk(min(round(support * len(hidden_pre)) + 1, hidden_pre.numel())).values
            sae.threshold.fill_(strongest[-1])


def gate_scale_for(sae: SparsemaxTrainingSAE, x: torch.Tensor, support: float) -> float:
    """The largest g at which these activations select `support` concepts on average, by a sample of tokens.

    From above, halving, then by bisection: with one pass and a refinement a far smaller g, whose dense supports the
    refinement makes negative, may leave as many.
    """
    sae._initialise_b_dec(x)
    sample = x[:_SAMPLE]

    def l0(g: float) -> float:
        sae.gate_scale = g
        with torch.no_grad():
            return sae.encode(sample).count_nonzero().item() / len(sample)

    low = high = 1e4
    while l0(low) <= support and low > 1e-3:
        low, high = low / 2, low
    for _ in range(25):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if l0(middle) > support else (low, middle)
    return (low * high) ** 0.5


def for_evaluation(form: str, own: SparsemaxTrainingSAEConfig, x: torch.Tensor) -> SAE[Any]:
    """A form of the SAE that selects `own.target_l0` concepts of (N, d_in) activations, as it is loaded for evaluation.

    SAELens saves BatchTopK as a JumpReLU whose thresholds are all one, so "jumprelu" is both.
    """
    assert own.target_l0 is not None
    torch.manual_seed(0)
    sae: TrainingSAE[Any] = TrainingSAE.from_dict(config_of(form, own).to_dict())
    select(sae, x, own.target_l0)
    if getattr(sae, "mean_acts", None) is not None:
        # What is weak is dropped once the mean activations of a batch are known, and the gate must make up for it.
        with torch.no_grad():
            sae.training_forward_pass(TrainStepInput(x, {}, None, 0, False))
        select(sae, x, own.target_l0)
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return SAE.load_from_disk(folder, device=own.device)
