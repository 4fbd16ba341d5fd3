"""The gate in plain tensor operations, for whatever looks through a call: torch.func, compilers, export, meta tensors.

The lists of `support` have lengths that depend on the scores, and its errors ask for values, neither of which exists
while a call is traced, batched by vmap or run on shapes alone. Here everything is dense and nothing branches: the
least selected score is found by bisection over the sorted row. Slower, so only `is_traced` calls come here.

But: scores that are not finite cannot be refused. Such a row is selected whole, so that what it holds shows.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.autograd.forward_ad import unpack_dual

from sae_lens_sparsemax.attention import entmax

_TINY = torch.finfo(torch.float64).tiny
# Newton doubles its digits in each; from 1e-300 to a number of ordinary size it takes these.
_NEWTON_STEPS = 40

_INTERPRETERS = (
    torch._C._TorchDispatchModeKey.FAKE,
    torch._C._TorchDispatchModeKey.PROXY,
    torch._C._TorchDispatchModeKey.FUNCTIONAL,
)
_NO_INTERPRETER: Any = torch.Tensor.__torch_dispatch__  # type: ignore[attr-defined]


def is_traced(*tensors: torch.Tensor) -> bool:
    """Whether values of these tensors must not be asked for, or operations need rules for forward-mode or batches.

    True under torch.compile, torch.export and tracing, in torch.func's transformations, and for meta tensors, fake
    tensors and their like, and tensors with a forward-mode tangent.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        # torch.func has no public way to ask.
        or torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[attr-defined]
        or any(torch._C._get_dispatch_mode(key) is not None for key in _INTERPRETERS)
        or any(_stands_for_others(tensor) for tensor in tensors)
    )


def _stands_for_others(tensor: torch.Tensor) -> bool:
    interprets = type(tensor).__torch_dispatch__ is not _NO_INTERPRETER  # type: ignore[attr-defined]
    return tensor.is_meta or interprets or unpack_dual(tensor).tangent is not None


def full_precision(tensor: torch.Tensor) -> Any:
    """A context without autocast on the device of the tensor; scores of rounded numbers select wrong supports."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The same in float32, or in float64 where it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def check_floating(name: str, tensor: torch.Tensor) -> None:
    """Refuse whole numbers, of which activations would be rounded and gradients vanish, and complex ones.

    Raises:
        ValueError: naming the type.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def traceable_gate(z: torch.Tensor, gate_scale: float, probabilities: bool, alpha: float = 2.0) -> torch.Tensor:
    """`gate.gate` in differentiable operations without branches.

    Args:
        z: (..., M) scores of any float dtype; −inf is never selected beside finite ones.
        gate_scale: g > 0. probabilities: activations g·(z − τ)^(1/(α − 1)) if true, else z. alpha: α >= 2.

    Returns:
        (..., M), zero outside the support, in the dtype of z. Its derivatives in any mode are exact on the support and
        zero elsewhere; those of higher order too, up to the third for probabilities with α > 2.

    Raises:
        ValueError: z is not floating point.
    """
    check_floating("scores", z)
    budget = entmax.whole_budget(1.0 / gate_scale, alpha)
    given = wide(z)
    row_max = given.detach().amax(-1, keepdim=True).double()
    scores = given.detach().double()
    on_support = _support(scores - row_max if alpha == 2 else scores, budget, alpha)
    if not probabilities:
        return torch.where(on_support, z, torch.zeros_like(z))
    shifted = given.double() - row_max
    if alpha == 2:
        shifted = torch.where(on_support, shifted, torch.zeros_like(shifted))
        tau = (shifted.sum(-1, keepdim=True) - budget) / on_support.sum(-1, keepdim=True)
        acts = gate_scale * (shifted - tau)
    else:
        acts = gate_scale * _excess(shifted, on_support, budget, alpha).pow(entmax.exponent(alpha))
    return torch.where(on_support, acts, torch.zeros_like(acts)).to(given.dtype).to(z.dtype)


def _support(scores: torch.Tensor, budget: float, alpha: float) -> torch.Tensor:
    """(..., M) bool: which of float64 scores are selected; for sparsemax less the largest of their row."""
    if alpha == 2:
        # Whatever lies further than b below the largest is out; the clamp keeps −inf out of the sums.
        level = entmax.least_affordable(scores.clamp_min(-2 * budget), budget, 1.0)
    else:
        level = entmax.least_affordable(scores, budget, entmax.exponent(alpha))
    # Not `>= level`, which is false of NaN; and padding that TopK has room for is none.
    return ~((scores < level) | (scores == -torch.inf))


def _excess(scores: torch.Tensor, on_support: torch.Tensor, budget: float, alpha: float) -> torch.Tensor:
    """(..., M) z − τ on the support and 1 elsewhere, as `entmax.excess` solves it, in a fixed number of steps.

    The solution is found without derivatives; the last two steps have them, and being Newton's, of which each doubles
    what is right, they have the solution's up to the third.
    """
    beta = entmax.exponent(alpha)
    least = torch.where(on_support, scores, torch.inf).amin(-1, keepdim=True)
    above = torch.where(on_support, scores - least, torch.ones_like(scores))

    def missing(s: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        spent = torch.where(on_support, (above + s).clamp_min(_TINY).pow(beta), torch.zeros_like(above))
        return budget - spent.sum(-1, keepdim=True)

    def step(s: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        growth = torch.where(on_support, beta * (above + s).clamp_min(_TINY).pow(beta - 1), torch.zeros_like(above))
        return missing(s, above) / growth.sum(-1, keepdim=True)

    given = above.detach()
    s = missing(torch.zeros_like(given[..., :1]), given).clamp_min(0)
    s = (s / on_support.sum(-1, keepdim=True)).pow(1 / beta)
    for _ in range(_NEWTON_STEPS):
        s = s + step(s, given).clamp_min(0)
    for _ in range(2):
        s = s + step(s, above)
    return torch.where(on_support, above + s, torch.ones_like(above))
