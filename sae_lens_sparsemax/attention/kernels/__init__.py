"""Triton kernels for CUDA: the selection, the score gradients and the weighted sums of concepts, in few launches.

They compute what `sparsemax` and `cross_attention` compute in torch, from the same inputs to the same outputs: the
supports are equal, sums differ by rounding, and every sum has a fixed order, so two runs give the same bits. Where
Triton is missing or tensors are elsewhere, torch computes; nobody has to switch anything on.

- `selection`: scores to CSR supports (chunk maxima, Newton, Michelot, compaction).
- `score_gradients`: dL/d(scores) on the support and dL/d(query), each concept's row read once.
- `weighted_rows`: weighted sums over lists of rows, long lists split; context over CSR, dL/d(concepts) over CSC.

But: written and tested in Triton's interpreter on the CPU and compiled for sm_80 and sm_90; not yet run or timed on a
GPU, so tile sizes are reasoned, not tuned, and a device is checked against torch on a small problem before it is
trusted. Importing this package imports no Triton; the modules in it do.
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


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _passes_self_check(device: torch.device) -> bool:
    from sae_lens_sparsemax.attention.kernels.self_check import differences

    try:
        problem = differences(device)
    except Exception as error:  # a compiler's or driver's, of whatever kind: torch can do the work
        problem = f"{type(error).__name__}: {error}"
    if problem:
        warnings.warn(f"Triton kernels are not used on {device}, torch computes instead: {problem}", stacklevel=3)
    return problem is None


@functools.cache
def _supported_by_triton(device: torch.device) -> bool:
    # Triton supports NVIDIA GPUs from Ampere on; ROCm reports capabilities above this.
    return torch.cuda.get_device_capability(device) >= (8, 0)
