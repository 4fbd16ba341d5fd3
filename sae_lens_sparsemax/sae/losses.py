"""What training makes small: the squared error of reconstructions, and perhaps the magnitudes of activations."""

from __future__ import annotations

import torch

from sae_lens_sparsemax.attention.traceable import wide
from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig


def reconstruction_loss(squared_error: torch.Tensor, x: torch.Tensor, cfg: SparsemaxTrainingSAEConfig) -> torch.Tensor:
    """Mean over tokens of the squared error, or of that over ‖x‖ (`loss_weighting`).

    Args: (..., d) squared errors of each coordinate; the (..., d) activations they are errors of; the configuration.
    """
    per_token = wide(squared_error).sum(-1)
    if cfg.loss_weighting == "inverse_norm":
        norm = torch.linalg.vector_norm(x.to(per_token.dtype), dim=-1)
        per_token = torch.where(norm > 0, per_token / norm.clamp_min(torch.finfo(norm.dtype).tiny), per_token)
    return per_token.mean()


def l1_penalty(feature_acts: torch.Tensor, W_dec: torch.Tensor, sae_out: torch.Tensor) -> torch.Tensor:
    """Σ_i |f_i|·‖W_dec,i‖ of (..., M) activations, dense or sparse, over the number of the (..., d) reconstructions.

    That is their mean over tokens; ranks that share the concepts have activations of more tokens than reconstructions.
    """
    magnitudes = feature_acts.abs() @ W_dec.norm(dim=-1)
    return magnitudes.mean() * (magnitudes.numel() / max(1, sae_out[..., 0].numel()))
