"""Triton kernels for CUDA: the selection, the score gradients and the weighted sums of concepts, in few launches.

They compute what `support`, `rows` and `cross_attention` compute in torch, from the same inputs to the same outputs:
the supports are equal, sums differ by rounding, and every sum has a fixed order, so two runs give the same bits. Where
Triton is missing or tensors are elsewhere, torch computes; nobody has to switch anything on.

- `selection`: scores to CSR supports, by way of chunk maxima and a bound of τ; `settling` decides and compacts.
- `rounding`: rows in bfloat16, their norms and what rounding lost.
- `candidates`: scores in bfloat16 to what may be in the supports of the exact ones.
- `score_gradients`: dL/d(scores) on the support and dL/d(query), each concept's row read once.
- `sampled_product`: inner products of two tables' rows at the entries of lists; exact scores of candidates.
- `weighted_rows`: weighted sums over lists of rows, long lists split; context over CSR, dL/d(concepts) over CSC.

But: run and timed on one GPU, an H200, where other tile sizes were no faster; a device is checked against torch on a
small problem before it is trusted. Tests without a GPU run in Triton's interpreter. Importing this package imports no
Triton; the modules in it do. Triton launches on the current device, whichever its arguments are on, so the modules make
that of their arguments current.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings

import torch

# The kernels serve every call they can; set to False to compare with torch.
ENABLED = True
# The widest rows that one program holds in registers.
MAX_WIDTH = 8192


def usable(tensor: torch.Tensor) -> bool:
    """Whether the kernels can serve a call on tensors like this one: on CUDA, float32 or float64, Triton at hand."""
    return (
        ENABLED
        and tensor.is_cuda
        and tensor.dtype in (torch.float32, torch.float64)
        and _triton_installed()
        and _supported_by_triton(tensor.device)
        and _passes_self_check(tensor.device)
    )


def can_hold_rows(table: torch.Tensor) -> bool:
    """Whether the kernels can serve a call that holds whole rows of (N, d) in registers."""
    return usable(table) and table.shape[1] <= MAX_WIDTH


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _passes_self_check(device: torch.device) -> bool:
    try:
        problem = _differences(device)
    except Exception as error:  # a compiler's or driver's, of whatever kind: torch can do the work
        problem = f"{type(error).__name__}: {error}"
    if problem:
        warnings.warn(f"Triton kernels are not used on {device}, torch computes instead: {problem}", stacklevel=3)
    return problem is None


@functools.cache
def _supported_by_triton(device: torch.device) -> bool:
    # Triton supports NVIDIA GPUs from Ampere on; ROCm reports capabilities above this.
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _differences(device: torch.device) -> str | None:
    """What the kernels get wrong on this device, or None; what is right is computed on the CPU in float64."""
    from sae_lens_sparsemax.attention.kernels.sampled_product import sampled_product
    from sae_lens_sparsemax.attention.kernels.score_gradients import score_gradients
    from sae_lens_sparsemax.attention.kernels.selection import select
    from sae_lens_sparsemax.attention.kernels.settling import settle
    from sae_lens_sparsemax.attention.kernels.weighted_rows import weighted_rows

    generator = torch.Generator().manual_seed(0)
    query, keys, d_context = (torch.randn(n, 40, generator=generator) for n in (9, 777, 9))
    scores = 0.1 * query @ keys.T
    mask = _support_by_sorting(scores)
    row, col = mask.nonzero(as_tuple=True)
    values = scores[row, col]

    found = select(scores.to(device), 1.0)
    if not (torch.equal(found[0].cpu().diff(), mask.sum(-1)) and torch.equal(found[1].cpu(), col)):
        return "selection finds another support"
    if not torch.equal(found[2].cpu(), values):
        return "selection returns other scores"

    listed = mask | (torch.rand(mask.shape, generator=generator) < 0.1)
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), listed.sum(-1).cumsum(0)])
    given, crow, col_listed = scores[listed].to(device), crow.to(device), listed.nonzero()[:, 1].to(device)
    settled = settle(given, crow, col_listed, scores.amax(-1).double().to(device), 1.0, 2.0)
    if not all(torch.equal(one, other) for one, other in zip(settled, found[:3], strict=True)):
        return "candidates settle to another support"

    crow, index, acts = found[:3]
    table, upstream = keys.to(device), d_context.to(device)
    if not _close(weighted_rows(crow, index, acts, table), torch.where(mask, scores, 0).double() @ keys.double()):
        return "weighted sums differ"
    if not _close(sampled_product(crow, index, query.to(device), table), (query.double() @ keys.double().T)[row, col]):
        return "sampled products differ"
    d_scores, d_query = score_gradients(crow, index, torch.zeros_like(acts), upstream, table, table, 1.0, False)
    d_dense = torch.where(mask, d_context.double() @ keys.double().T, 0)
    if not _close(d_scores, d_dense[row, col]):
        return "gradients of the scores differ"
    if not _close(d_query, d_dense @ keys.double()):
        return "gradients of the queries differ"
    return None


def _support_by_sorting(scores: torch.Tensor) -> torch.Tensor:
    ranked = scores.double().sort(-1, descending=True).values
    rank = torch.arange(1, scores.shape[1] + 1, dtype=torch.float64)
    count = (ranked + (1 - ranked.cumsum(-1)) / rank > 0).sum(-1, keepdim=True)
    return scores.double() > (ranked.cumsum(-1).gather(1, count - 1) - 1) / count


def _close(found: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((found.cpu().double() - right).abs().max() <= 1e-5 * right.abs().max())
