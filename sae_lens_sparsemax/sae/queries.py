"""From the activations that an SAE is given to the queries that it scores, and what multiplies what they find.

A query is u = x/‖x‖ with the factor ‖x‖, or x itself with the factor 1; b_dec and normalisation are taken off before.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from sae_lens.saes.sae import SAE

from sae_lens_sparsemax.attention.rows import refuse_second_derivative
from sae_lens_sparsemax.attention.traceable import is_traced, wide

# Numbers between these powers of two have squares that neither overflow nor vanish; others are shifted by so many.
_ORDINARY_POWER = {torch.float32: 50, torch.float64: 400}
_SHIFT = {torch.float32: 80, torch.float64: 600}


def checked_queries(sae: SAE[Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs after the SAE's own hook, normalisation and b_dec, their queries and factors; see `split_norm`.

    Args:
        sae: a sparsemax SAE, in training or for inference.
        x: (..., d_in) activations, or (..., n_heads, d_head) where the SAE joins heads.

    Raises:
        ValueError: x is not d_in wide, or holds NaN or infinity.
    """
    check_width(x, sae.cfg.d_in, sae.hook_z_reshaping_mode)
    check_finite(x, sae.cfg.metadata.hook_name)
    sae_in = wide(sae.process_sae_in(x))
    return sae_in, *split_norm(sae_in, sae.cfg.unit_norm_query)


def check_finite(sae_in: torch.Tensor, hook_name: str | None, step: int | None = None) -> None:
    """Refuse NaN and infinite activations, which sparsemax cannot rank and which would ruin the weights.

    Where the call is traced there are no values to look at.

    Raises:
        ValueError: naming the hook, the training step where there is one, and how many tokens are affected.
    """
    # A sum is one pass without a temporary; only when it is not finite is the culprit looked for.
    if is_traced(sae_in) or math.isfinite(sae_in.sum().item()):
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
        sae_in: (..., d) activations with b_dec subtracted, float32 or float64.
        unit_norm_query: x/‖x‖ and ‖x‖ if true; x and 1 if false, or 0 where x = 0, which has no active concept.

    Returns:
        (..., d) queries and (..., 1) factors.
    """
    if not unit_norm_query:
        return sae_in, (sae_in != 0).any(-1, keepdim=True).to(sae_in.dtype)
    norm = torch.linalg.vector_norm(sae_in, dim=-1, keepdim=True)
    ordinary = _ORDINARY_POWER[sae_in.dtype]
    # Squares that overflowed or vanished show in the norm, so ordinary rows, nearly all there are, need no second look.
    if not is_traced(norm) and norm.numel():
        least, largest = torch.stack(norm.detach().aminmax()).tolist()
        if least > 2.0**-ordinary and largest < 2.0**ordinary:
            return sae_in / norm, norm
    scale = _power_of_two(sae_in)
    scaled = sae_in * scale
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / norm.clamp_min(torch.finfo(norm.dtype).tiny), _unscaled(norm, scale)


@torch.no_grad()
def _power_of_two(x: torch.Tensor) -> torch.Tensor:
    """(..., 1) what to multiply each row of x (..., d) by so that its squares neither overflow nor vanish.

    A power of two changes no digit, and is 1 for ordinary rows.
    """
    ordinary, shift = _ORDINARY_POWER[x.dtype], _SHIFT[x.dtype]
    largest = x.abs().amax(-1, keepdim=True)
    raised = torch.where(largest < 2.0**-ordinary, torch.full_like(largest, 2.0**shift), torch.ones_like(largest))
    return torch.where(largest > 2.0**ordinary, torch.full_like(largest, 2.0**-shift), raised)


def _unscaled(norm: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Norms of rows that were multiplied by a scale; one too large for its dtype is the largest number there is."""
    return (norm / scale).clamp_max(torch.finfo(norm.dtype).max)


def projected_query(
    sae_in: torch.Tensor, b_dec: torch.Tensor | None, query_map: torch.Tensor, unit_norm_query: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """u W_q W_kᵀ and the factor of the activations, with the gradient of b_dec summed before it is projected.

    Autograd would carry every token's gradient back through W_q W_kᵀ (N·d²) only to add all of them up into b_dec.
    Both steps are linear, so the sum comes first here and one vector is carried back; the result is the same to
    rounding. The inputs get no gradient of their own.

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
        unit, factor = split_norm(sae_in, unit_norm_query)
        norm_or_tiny = factor.clamp_min(torch.finfo(factor.dtype).tiny) if unit_norm_query else None
        query = unit @ query_map
        ctx.save_for_backward(unit, norm_or_tiny, query_map, query)
        return query, factor

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        refuse_second_derivative()
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
