"""Queries of a training batch, with the gradient of b_dec summed before it is projected.

Autograd would carry every token's gradient back through W_q W_kᵀ (N·d²) only to add all of them up into b_dec. Both
steps are linear, so the sum comes first here and one vector is carried back; the result is the same to rounding.
"""

from __future__ import annotations

import torch


def projected_query(
    sae_in: torch.Tensor, b_dec: torch.Tensor | None, query_map: torch.Tensor, unit_norm_query: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """u W_q W_kᵀ and the factor of the activations, for inputs that need no gradient of their own.

    Args:
        sae_in: (N, d) float32 or float64, without gradient, b_dec subtracted already if it is to be.
        b_dec: (d,), to receive its gradient through sae_in = x − b_dec, or None if it was not subtracted.
        query_map: (d, d) W_q W_kᵀ in the dtype of sae_in.
        unit_norm_query: u = x/‖x‖ with factor ‖x‖ if true; u = x with factor 1 (0 where x = 0) if false.

    Returns:
        (N, d) projected queries and (N, 1) factors.
    """
    return _ProjectedQuery.apply(sae_in, b_dec, query_map, unit_norm_query)  # type: ignore[no-any-return]


class _ProjectedQuery(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sae_in, b_dec, query_map, unit_norm_query: bool):  # noqa: ARG004  b_dec takes a gradient only
        norm = torch.linalg.vector_norm(sae_in, dim=-1, keepdim=True)
        if unit_norm_query:
            norm_or_tiny = norm.clamp_min(torch.finfo(norm.dtype).tiny)
            unit, factor = sae_in / norm_or_tiny, norm
        else:
            norm_or_tiny = None
            unit, factor = sae_in, (norm > 0).to(sae_in.dtype)
        query = unit @ query_map
        ctx.save_for_backward(unit, norm_or_tiny, query_map, query)
        return query, factor

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        d_query, d_factor = grads
        unit, norm, query_map, query = ctx.saved_tensors
        d_query_map = unit.T @ d_query if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[1]:
            return None, None, d_query_map, None
        if norm is None:
            return None, -(query_map @ d_query.sum(0)), d_query_map, None
        # With du = dq Aᵀ: ds = (du − u (u·du))/‖s‖ + u dfactor, where u·du = q·dq needs no projection either.
        along = (query * d_query).sum(-1, keepdim=True)
        d_sum = query_map @ (d_query / norm).sum(0) + (unit * (d_factor - along / norm)).sum(0)
        return None, -d_sum, d_query_map, None
