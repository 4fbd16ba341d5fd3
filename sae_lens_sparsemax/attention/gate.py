"""Activations on a support and their gradients; the gate on dense scores; sparsemax itself.

A support S says which concepts are active; the gate says with what: with their scores z, or with the probabilities
g·(z − τ)^β of α-entmax, which sum to 1 (β = 1/(α − 1); for sparsemax, α = 2, they are g·z − τ). Outside the support
every derivative is exactly zero; on it dL/dz = dL/da for scores, and s·(dL/da less its mean weighted by s) for
probabilities, where s = gβ·(z − τ)^(β − 1) is how fast each grows (Martins & Astudillo 2016, Prop. 2; Peters, Niculae
& Martins 2019, Prop. 2). At α = ∞ all probabilities are equal and have no gradient.
"""

from __future__ import annotations

import torch

from sae_lens_sparsemax.attention import entmax
from sae_lens_sparsemax.attention.support import Support, check_positive, select_support
from sae_lens_sparsemax.attention.traceable import is_traced, traceable_gate

# (z − τ), the budget's share to the power of α − 1, is then a number of float64 for every gate scale that is of use.
MAX_ALPHA_OF_PROBABILITIES = 32


def support_activations(support: Support, probabilities: bool) -> torch.Tensor:
    """(nnz,) activations on the support: its probabilities (they sum to 1 in each row), or the scores z themselves."""
    if not probabilities:
        return support.values
    above = support.above_tau
    spent = above if support.alpha == 2 else above.pow(entmax.exponent(support.alpha))
    return (spent / support.budget).to(support.values.dtype)


def support_gradient(grad: torch.Tensor, support: Support, probabilities: bool) -> torch.Tensor:
    """(nnz,) dL/dz on the support from (nnz,) dL/d(activation)."""
    if not probabilities:
        return grad
    row, counts = support.row, support.counts
    if support.alpha == 2:
        total = torch.zeros(len(counts), dtype=grad.dtype, device=grad.device).index_add_(0, row, grad)
        if support.shard is not None:
            total, counts = support.shard.total(torch.stack([total, counts.to(total.dtype)]))
        return (grad - (total / counts)[row]) / support.budget
    growth = support.above_tau.pow(entmax.exponent(support.alpha) - 1) / ((support.alpha - 1) * support.budget)

    def of_rows(kind: str, values: torch.Tensor) -> torch.Tensor:
        reduced = torch.segment_reduce(values, kind, offsets=support.crow, initial=0.0 if kind == "sum" else -torch.inf)
        if support.shard is None:
            return reduced
        return support.shard.total(reduced) if kind == "sum" else support.shard.largest(reduced)

    # The score that just enters may grow so much faster than all others that its gradient is the mean to the last
    # digit; taken less its gradient, the others are what is left.
    fastest = of_rows("max", growth)[row]
    grad_of_fastest = of_rows("max", torch.where(growth == fastest, grad.double(), -torch.inf))[row]
    centred = grad.double() - grad_of_fastest
    mean = of_rows("sum", growth * centred) / of_rows("sum", growth)
    return (growth * (centred - mean[row])).to(grad.dtype)


def _probabilities_gradient(grad: torch.Tensor, acts: torch.Tensor, support: Support) -> torch.Tensor:
    """(N, M) dL/dz of dense probabilities in operations that are differentiable themselves.

    In the probabilities p that came out, through which a second derivative goes on to z, s = β/b·(b·p)^(2 − α).
    """
    on_support, p = acts > 0, acts.double()
    spent = torch.where(on_support, support.budget * p, torch.ones_like(p))
    rate = entmax.exponent(support.alpha) / support.budget
    growth = torch.where(on_support, rate * spent.pow(2 - support.alpha), torch.zeros_like(p))
    # Less the gradient of the fastest, as in `support_gradient`.
    centred = grad.double() - grad.double().gather(-1, growth.argmax(-1, keepdim=True))
    mean = (growth * centred).sum(-1, keepdim=True) / growth.sum(-1, keepdim=True)
    return (growth * (centred - mean)).to(grad.dtype)


class _Gate(torch.autograd.Function):
    """Dense activations from dense scores. Outside the support every derivative is exactly zero."""

    @staticmethod
    def forward(ctx, z: torch.Tensor, gate_scale: float, probabilities: bool, alpha: float) -> torch.Tensor:
        support = select_support(z, 1.0 / gate_scale, alpha)
        acts = support_activations(support, probabilities)
        ctx.support, ctx.probabilities = support, probabilities
        dense = torch.zeros_like(z).index_put_((support.row, support.col), acts.to(z.dtype))
        if probabilities and alpha != 2:
            ctx.save_for_backward(dense)
        return dense

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        (grad,) = grads
        if torch.is_grad_enabled() and ctx.saved_tensors:
            return _probabilities_gradient(grad, ctx.saved_tensors[0], ctx.support), None, None, None
        row, col = ctx.support.row, ctx.support.col
        on_support = support_gradient(grad[row, col], ctx.support, ctx.probabilities)
        return torch.zeros_like(grad).index_put_((row, col), on_support), None, None, None


def gate(z: torch.Tensor, gate_scale: float = 1.0, probabilities: bool = True, alpha: float = 2.0) -> torch.Tensor:
    """Dense activations on the support that α-entmax with the budget 1/g selects, differentiable in z.

    Args:
        z: (..., M) scores of any float dtype.
        gate_scale: g > 0; a larger one selects fewer concepts. For α = 2 the support is that of sparsemax(g·z), for
            α = ∞ the 1/g largest.
        probabilities: g·(z − τ)^(1/(α − 1)) on the support if true, z itself if false.
        alpha: α >= 2: 2 is sparsemax, infinity TopK.

    Returns:
        (..., M), zero outside the support, in the dtype of z.

    Raises:
        ValueError: z has no last dimension to select from, its scores are whole numbers or not finite (−inf is, beside
            finite ones; not asked where the call is traced), g is not positive, α is below 2, or too large for
            probabilities.
    """
    if z.ndim == 0:
        raise ValueError("scores must have at least one dimension, got a scalar")
    check_gate(gate_scale, probabilities, alpha)
    if is_traced(z):
        return traceable_gate(z, gate_scale, probabilities, alpha)
    rows = z.reshape(-1, z.shape[-1])
    return _Gate.apply(rows, gate_scale, probabilities, alpha).reshape(z.shape)  # type: ignore[no-any-return]


def check_gate(gate_scale: float, probabilities: bool, alpha: float) -> None:
    """Refuse a gate that is none.

    Raises:
        ValueError: g is not positive or infinite, α is below 2, or too large for probabilities.
    """
    check_positive("gate_scale", gate_scale)
    if not alpha >= 2:
        raise ValueError(f"alpha must be at least 2, got {alpha}")
    if probabilities and alpha > MAX_ALPHA_OF_PROBABILITIES:
        raise ValueError(
            f"alpha must be at most {MAX_ALPHA_OF_PROBABILITIES} where activations are probabilities, got {alpha}: "
            "beyond it, as with TopK, all that are selected have nearly the same share; take the scores as activations"
        )


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
