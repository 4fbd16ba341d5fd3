"""Activations on a support and their gradients; the gate on dense scores; sparsemax itself.

A support S says which concepts are active; the gate says with what: with their scores z, or with the probabilities
g·z − τ, which sum to 1. Outside the support every derivative is exactly zero; on it dL/dz = dL/da for scores, and
g times dL/da less its mean over S for probabilities (Martins & Astudillo 2016, Prop. 2).
"""

from __future__ import annotations

import torch

from sae_lens_sparsemax.attention.support import Support, select_support
from sae_lens_sparsemax.attention.traceable import is_traced, traceable_gate


def support_activations(support: Support, gate_scale: float, probabilities: bool) -> torch.Tensor:
    """(nnz,) activations on the support: g·z − τ (they sum to 1 in each row), or the scores z themselves."""
    if not probabilities:
        return support.values
    return (gate_scale * support.above_tau).to(support.values.dtype)


def support_gradient(
    grad: torch.Tensor, row: torch.Tensor, counts: torch.Tensor, gate_scale: float, probabilities: bool
) -> torch.Tensor:
    """(nnz,) dL/dz on the support from (nnz,) dL/d(activation): itself, or g times it less its row's mean."""
    if not probabilities:
        return grad
    total = torch.zeros(len(counts), dtype=grad.dtype, device=grad.device).index_add_(0, row, grad)
    return gate_scale * (grad - (total / counts)[row])


class _Gate(torch.autograd.Function):
    """Dense activations from dense scores. Outside the support every derivative is exactly zero."""

    @staticmethod
    def forward(ctx, z: torch.Tensor, gate_scale: float, probabilities: bool) -> torch.Tensor:
        support = select_support(z, 1.0 / gate_scale)
        acts = support_activations(support, gate_scale, probabilities)
        ctx.gate_scale, ctx.probabilities = gate_scale, probabilities
        row = support.row
        ctx.save_for_backward(row, support.col)
        ctx.counts = support.counts
        return torch.zeros_like(z).index_put_((row, support.col), acts.to(z.dtype))

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        (grad,) = grads
        row, col = ctx.saved_tensors
        on_support = support_gradient(grad[row, col], row, ctx.counts, ctx.gate_scale, ctx.probabilities)
        return torch.zeros_like(grad).index_put_((row, col), on_support), None, None


def gate(z: torch.Tensor, gate_scale: float = 1.0, probabilities: bool = True) -> torch.Tensor:
    """Dense activations on the support of sparsemax(g·z), differentiable in z.

    Args:
        z: (..., M) scores of any float dtype.
        gate_scale: g > 0; a larger one selects fewer concepts.
        probabilities: g·z − τ on the support if true, z itself if false.

    Returns:
        (..., M), zero outside the support, in the dtype of z.

    Raises:
        ValueError: z has no last dimension to select from, its scores are not finite (−inf is, beside finite ones;
            not asked where the call is traced), or g is not positive.
    """
    if z.ndim == 0:
        raise ValueError("scores must have at least one dimension, got a scalar")
    if not gate_scale > 0:
        raise ValueError(f"gate_scale must be positive, got {gate_scale}")
    if is_traced(z):
        return traceable_gate(z, gate_scale, probabilities)
    rows = z.reshape(-1, z.shape[-1])
    return _Gate.apply(rows, gate_scale, probabilities).reshape(z.shape)  # type: ignore[no-any-return]


def sparsemax(z: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """argmin_p ‖p − z‖² over the probability simplex along `dim` (the paper's Eq. 4).

    Args:
        z: scores of any shape and float dtype, finite.
        dim: the dimension that is projected.

    Returns:
        Probabilities of the shape and dtype of z; exactly zero outside the support. Differentiable, gradient
        g − mean_S(g) on the support.
    """
    return gate(z.movedim(dim, -1)).movedim(-1, dim)
