"""Short runs of SAELens's trainer on given activations, the same batches in the same order every time."""

from dataclasses import replace
from itertools import islice

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_sparsemax import SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig

HOOK = "blocks.2.hook_resid_post"
BATCH = 256


def new_config(**settings) -> SparsemaxTrainingSAEConfig:
    """An SAE of 512 concepts for the residual stream after block 2 of the embedded model."""
    metadata = SAEMetadata(hook_name=HOOK, model_name="quickstart", context_size=64, prepend_bos=True)
    # Runs of a few dozen steps leave g no time at its usual rate.
    usual = {"d_in": 128, "d_sae": 512, "target_l0": 12.0, "target_l0_rate": 0.1, "metadata": metadata}
    return SparsemaxTrainingSAEConfig(**usual | settings)


def stream(activations: torch.Tensor, start: int = 0):
    """Endless batches of 256 activations; batch number `start` first."""
    n_batches = len(activations) // BATCH
    step = start
    while True:
        first = step % n_batches * BATCH
        yield activations[first : first + BATCH]
        step += 1


def trainer_of(sae_or_config, activations, steps: int, start: int = 0, **settings) -> SAETrainer:
    """SAELens's trainer, without wandb, on `stream(activations, start)`."""
    sae = sae_or_config
    if not isinstance(sae, SparsemaxTrainingSAE):
        sae = SparsemaxTrainingSAE(replace(sae_or_config))
    cfg = SAETrainerConfig(
        **{
            "total_training_samples": steps * BATCH,
            "train_batch_size_samples": BATCH,
            "lr": 2e-3,
            "lr_end": 2e-4,
            "n_batches_for_norm_estimate": 8,
        }
        | settings
    )
    return SAETrainer(cfg, sae, stream(activations, start))


def first_batches(activations: torch.Tensor, n: int) -> list[torch.Tensor]:
    return list(islice(stream(activations), n))


def fraction_explained(sae, activations: torch.Tensor) -> float:
    """1 − Σ‖x − x̂‖² / Σ‖x − mean‖²."""
    with torch.no_grad():
        error = (sae(activations) - activations).pow(2).sum()
    return (1 - error / (activations - activations.mean(0)).pow(2).sum()).item()
