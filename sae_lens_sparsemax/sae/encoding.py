"""From queries to gated activations and on to sums of decoder rows: what both SAEs share, on tensors alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from sae_lens_sparsemax.attention.gate import gate
from sae_lens_sparsemax.attention.rows import row_offsets, weighted_rows
from sae_lens_sparsemax.attention.traceable import full_precision, is_traced

# Share of non-zero activations below which a weighted sum of decoder rows beats the matrix product.
MAX_LIST_DENSITY = 0.05


def dense_scores(query: torch.Tensor, W_enc: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(..., M) scores in the dtype of the query, whatever autocast says: rounded scores select wrong supports."""
    with full_precision(query):
        scores = query @ W_enc.to(query.dtype)
        return scores if bias is None else scores + bias.to(query.dtype)


def gate_scores(scores: torch.Tensor, kind: str, gate_scale: float, probabilities: bool, alpha: float) -> torch.Tensor:
    """(..., M) dense activations of dense scores for the gate "sparsemax" (of any alpha) or "relu"."""
    return scores.relu() if kind == "relu" else gate(scores, gate_scale, probabilities, alpha)


def linear_decode(feature_acts: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """feature_acts · table, (..., M) · (M, d), through lists of non-zeros where they are few.

    Takes sparse activations too. With gradients it is the plain product: a gradient with respect to
    activations is wanted at inactive concepts as well.
    """
    if feature_acts.layout != torch.strided:
        with full_precision(table):
            context = torch.sparse.mm(_sparse_rows(feature_acts).to(table.dtype), table)
            return context.reshape(*feature_acts.shape[:-1], table.shape[-1])
    if is_traced(feature_acts, table) or (
        torch.is_grad_enabled() and (feature_acts.requires_grad or table.requires_grad)
    ):
        return feature_acts @ table
    rows = feature_acts.reshape(-1, feature_acts.shape[-1])
    if rows.is_floating_point() and rows.dtype in (torch.float32, torch.float64) and rows.dtype == table.dtype:
        row, col = rows.nonzero(as_tuple=True)
        if col.numel() <= MAX_LIST_DENSITY * rows.numel():
            context = weighted_rows(row_offsets(row, rows.shape[0]), col, rows[row, col], table)
            return context.reshape(*feature_acts.shape[:-1], table.shape[-1])
    return feature_acts @ table


def _sparse_rows(acts: torch.Tensor) -> torch.Tensor:
    """(N, M) sparse activations, of (..., M) in COO or of a matrix in another sparse layout."""
    if acts.ndim == 2:
        return acts.to_sparse_coo()
    acts = acts.coalesce()
    row = torch.zeros_like(acts.indices()[-1])
    for size, place in zip(acts.shape[:-1], acts.indices()[:-1], strict=True):
        row = row * size + place
    shape = (math.prod(acts.shape[:-1]), acts.shape[-1])
    return torch.sparse_coo_tensor(torch.stack([row, acts.indices()[-1]]), acts.values(), shape, check_invariants=False)


def rounded(computed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What was computed in float32 or float64, in the dtype of the SAE.

    Raises:
        ValueError: it is too large for float16 (infinite where the call is traced).
    """
    result = computed.to(dtype)
    if dtype == torch.float16 and not is_traced(computed) and not bool(torch.isfinite(result).all()):
        raise ValueError(
            f"activations of an SAE in float16 must be at most {torch.finfo(dtype).max:g}, got "
            f"{computed.abs().max():.3g}: use it in bfloat16 or float32"
        )
    return result


def is_hooked(point: nn.Module) -> bool:
    """Whether a hook point has hooks, forward or backward, before or after it."""
    hooks = point._forward_hooks, point._forward_pre_hooks, point._backward_hooks, point._backward_pre_hooks
    return any(hooks)
