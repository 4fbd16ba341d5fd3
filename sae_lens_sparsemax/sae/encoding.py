"""From an SAE's input to gated activations: what inference and training share, on tensors alone."""

from __future__ import annotations

import math

import torch

from sae_lens_sparsemax.attention.cross_attention import select
from sae_lens_sparsemax.attention.gate import gate, support_activations


def check_finite(sae_in: torch.Tensor, hook_name: str | None, step: int | None = None) -> None:
    """Refuse NaN and infinite activations, which sparsemax cannot rank and which would ruin the weights.

    Raises:
        ValueError: naming the hook, the training step where there is one, and how many tokens are affected.
    """
    # A sum is one pass without a temporary; only when it is not finite is the culprit looked for.
    if torch.isfinite(sae_in.sum()):
        return
    bad = ~torch.isfinite(sae_in).reshape(-1, sae_in.shape[-1]).all(-1)
    if not bad.any():
        return
    where = f"activations at {hook_name or 'the input of the SAE'}"
    when = "" if step is None else f" in training step {step}"
    raise ValueError(f"{where}{when} are not finite: {int(bad.sum())} of {bad.numel()} tokens hold NaN or infinity")


def check_width(x: torch.Tensor, d_in: int, has_heads: bool = False) -> None:
    """Refuse inputs that are not d_in wide; a width of 1 would otherwise be spread over b_dec without a word.

    Args:
        x: (..., d_in), or (..., n_heads, d_head) if it has heads.

    Raises:
        ValueError: giving both widths.
    """
    if math.prod(x.shape[-2:] if has_heads else x.shape[-1:]) != d_in:
        wanted = "(..., n_heads, d_head) with n_heads * d_head" if has_heads else "(..., d_in) with d_in"
        raise ValueError(f"expected activations {wanted} = {d_in}, got {tuple(x.shape)}")


def split_norm(sae_in: torch.Tensor, unit_norm_query: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries, and what multiplies their activations.

    Args:
        sae_in: (..., d) activations with b_dec subtracted, of any float dtype.
        unit_norm_query: x/‖x‖ and ‖x‖ if true; x and 1 if false, or 0 where x = 0, which has no active concept.

    Returns:
        (..., d) queries and (..., 1) factors, in float32 (float64 stays).
    """
    wide = sae_in if sae_in.dtype == torch.float64 else sae_in.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    if not unit_norm_query:
        return wide, (norm > 0).to(wide.dtype)
    return wide / norm.clamp_min(torch.finfo(wide.dtype).tiny), norm


def dense_scores(query: torch.Tensor, W_enc: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(..., M) scores in the dtype of the query, whatever autocast says: rounded scores select wrong supports."""
    with torch.autocast(query.device.type, enabled=False):
        scores = query @ W_enc.to(query.dtype)
        return scores if bias is None else scores + bias.to(query.dtype)


def gate_scores(scores: torch.Tensor, kind: str, gate_scale: float, probabilities: bool) -> torch.Tensor:
    """(..., M) dense activations of dense scores for the gate "sparsemax" or "relu"."""
    return scores.relu() if kind == "relu" else gate(scores, gate_scale, probabilities)


@torch.no_grad()
def dense_activations(
    query: torch.Tensor,
    keys: torch.Tensor,
    bias: torch.Tensor | None,
    gate_scale: float,
    probabilities: bool,
) -> torch.Tensor:
    """(..., M) dense sparsemax activations without a second matrix of that size, and without gradient.

    Args: (..., d) queries and (M, d) keys of one float dtype, (M,) bias or None, g, and the kind of activation.
    """
    rows = query.reshape(-1, query.shape[-1])
    with torch.autocast(query.device.type, enabled=False):
        found = select(rows, keys, bias, gate_scale, max_density=1.0)
    assert found is not None  # with a density of 1 allowed, selection never gives up
    support = found[0]
    acts = query.new_zeros(rows.shape[0], keys.shape[0])
    acts[support.row, support.col] = support_activations(support, gate_scale, probabilities)
    return acts.reshape(*query.shape[:-1], keys.shape[0])
