"""Geometry of an SAE's space: does it keep the neighbourhoods of its input, and are its concepts orthogonal?

CKNNA is the centred kernel nearest-neighbour alignment of Huh et al., "The Platonic Representation
Hypothesis" (2024), as the MSAE code uses it: unbiased HSIC of linear kernels restricted to shared nearest
neighbours. The sparsemax paper does not say whether it compares the input with the activations or with the
reconstruction, so both are reported.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sae_lens import SAE

from sae_lens_sparsemax.evaluation.reconstruction import ReconstructionAccumulator, ReconstructionMetrics
from sae_lens_sparsemax.evaluation.streaming import RunningMean
from sae_lens_sparsemax.models.encoding import CHUNK_SIZE, EncodedChunk, SparseActs, encode_chunks, encode_images

N_NEIGHBOURS = 10


@dataclass(frozen=True)
class GeometryMetrics:
    """Geometry of one SAE on one set of samples, which are tokens or images."""

    reconstruction: ReconstructionMetrics
    """FVU, cosine similarity, sparsity and dead concepts on the same samples."""
    cknna_acts: float
    """CKNNA of the input and the activations; 1 is best. NaN if there was no full batch."""
    cknna_recon: float
    """CKNNA of the input and the reconstruction."""
    n_cknna_batches: int
    """Batches averaged over."""
    decoder_orthogonality: float
    """Mean squared cosine between different decoder rows; 0 for orthogonal concepts."""


def evaluate_geometry(
    sae: SAE[Any],
    batches: Iterable[torch.Tensor],
    *,
    level: Literal["token", "image"] = "token",
    cknna_batch_size: int = 512,
    chunk_size: int = CHUNK_SIZE,
) -> GeometryMetrics:
    """Evaluate the geometry of an SAE in one pass.

    Args:
        sae: Any SAELens SAE.
        batches: Activations of shape (..., d_in); for `level="image"`, of shape (images, tokens, d_in).
        level: Whether samples are tokens, or images with all quantities averaged over their tokens.
        cknna_batch_size: Samples compared with each other; CKNNA is averaged over such batches and leaves out
            the samples at the end that do not fill one, unless there is no whole one.
        chunk_size: Tokens encoded at once.
    """
    if cknna_batch_size <= max(N_NEIGHBOURS, 3):
        raise ValueError(f"cknna_batch_size must exceed the {N_NEIGHBOURS} neighbours compared, got {cknna_batch_size}")
    reconstruction = ReconstructionAccumulator(sae.cfg.d_sae)
    cknna_acts, cknna_recon = RunningMean(), RunningMean()

    def compare(samples: EncodedChunk) -> None:
        kernel = linear_kernel(samples.sae_in)
        cknna_acts.add(torch.tensor(cknna(kernel, sparse_linear_kernel(samples.acts)), dtype=torch.float64))
        cknna_recon.add(torch.tensor(cknna(kernel, linear_kernel(samples.sae_out)), dtype=torch.float64))

    encode = encode_images if level == "image" else encode_chunks
    group: list[EncodedChunk] = []
    for chunk in encode(sae, batches, chunk_size):
        reconstruction.add(chunk)
        group.append(chunk)
        while sum(part.acts.n_rows for part in group) >= cknna_batch_size:
            samples, rest = _take(group, cknna_batch_size)
            compare(samples)
            group = [rest] if rest.acts.n_rows else []
    n_left = sum(part.acts.n_rows for part in group)
    if cknna_acts.count == 0 and n_left > max(N_NEIGHBOURS, 3):
        compare(_take(group, n_left)[0])
    return GeometryMetrics(
        reconstruction=reconstruction.result(),
        cknna_acts=cknna_acts.mean(),
        cknna_recon=cknna_recon.mean(),
        n_cknna_batches=cknna_acts.count,
        decoder_orthogonality=decoder_orthogonality(sae.W_dec),
    )


def cknna(kernel: torch.Tensor, other: torch.Tensor, n_neighbours: int = N_NEIGHBOURS) -> float:
    """CKNNA of two kernels of shape (n, n) over the same samples; 0 if either has no spread.

    A pair (i, j) counts if j is among the `n_neighbours` most similar to i, itself excluded, in both kernels.
    """
    near, other_near = _neighbour_mask(kernel, n_neighbours), _neighbour_mask(other, n_neighbours)
    both = near & other_near
    cross = hsic_unbiased(kernel * both, other * both)
    own = hsic_unbiased(kernel * near, kernel * near)
    others = hsic_unbiased(other * other_near, other * other_near)
    return cross / math.sqrt(own * others) if own > 0 and others > 0 else 0.0


def hsic_unbiased(kernel: torch.Tensor, other: torch.Tensor) -> float:
    """The unbiased estimate of HSIC of Song et al. (2012) for two kernels of shape (n, n), n > 3."""
    n = len(kernel)
    kernel, other = kernel.clone().fill_diagonal_(0), other.clone().fill_diagonal_(0)
    trace = (kernel * other.T).sum()
    means = kernel.sum() * other.sum() / ((n - 1) * (n - 2))
    product = 2 * (kernel.sum(0) @ other.sum(1)) / (n - 2)
    return ((trace + means - product) / (n * (n - 3))).item()


def linear_kernel(x: torch.Tensor) -> torch.Tensor:
    """X Xᵀ of samples of shape (n, d), in float64."""
    x = x.double()
    return x @ x.T


def sparse_linear_kernel(acts: SparseActs) -> torch.Tensor:
    """A Aᵀ of sparse activations, shape (n, n), in float64, without the dense (n, d_sae) matrix."""
    indices = torch.stack([acts.row, acts.col])
    shape = (acts.n_rows, acts.d_sae)
    matrix = torch.sparse_coo_tensor(indices, acts.value.double(), shape, check_invariants=False)
    return torch.sparse.mm(matrix, matrix.T).to_dense()


@torch.no_grad()
def decoder_orthogonality(W_dec: torch.Tensor) -> float:
    """Mean squared off-diagonal entry of the Gram matrix of unit-norm decoder rows.

    The (d_sae, d_sae) Gram matrix is never built: the sum of the squares of all its entries is the squared
    Frobenius norm of the (d_in, d_in) matrix WᵀW, and its diagonal is 1. For random directions the value is
    1 / d_in. Rows that are zero have no direction and are left out.

    Args:
        W_dec: Decoder, shape (d_sae, d_in).
    """
    rows = W_dec.double()
    norms = rows.norm(dim=-1, keepdim=True)
    rows = (rows / norms)[norms[:, 0] > 0]
    n = len(rows)
    if n < 2:
        return float("nan")
    return ((rows.T @ rows).pow(2).sum().item() - n) / (n * (n - 1))


def _neighbour_mask(kernel: torch.Tensor, n_neighbours: int) -> torch.Tensor:
    nearest = kernel.clone().fill_diagonal_(-torch.inf).topk(n_neighbours, dim=1).indices
    return torch.zeros_like(kernel, dtype=torch.bool).scatter_(1, nearest, True)


def _take(chunks: list[EncodedChunk], n: int) -> tuple[EncodedChunk, EncodedChunk]:
    """The first `n` samples of some chunks as one chunk, and the rest as another."""
    sae_in = torch.cat([chunk.sae_in for chunk in chunks])
    sae_out = torch.cat([chunk.sae_out for chunk in chunks])
    offsets = [0]
    for chunk in chunks:
        offsets.append(offsets[-1] + chunk.acts.n_rows)
    row = torch.cat([chunk.acts.row + offset for chunk, offset in zip(chunks, offsets, strict=False)])
    col = torch.cat([chunk.acts.col for chunk in chunks])
    value = torch.cat([chunk.acts.value for chunk in chunks])
    first, d_sae = row < n, chunks[0].acts.d_sae
    acts = SparseActs(row[first], col[first], value[first], n, d_sae)
    rest = SparseActs(row[~first] - n, col[~first], value[~first], offsets[-1] - n, d_sae)
    return EncodedChunk(sae_in[:n], sae_out[:n], acts), EncodedChunk(sae_in[n:], sae_out[n:], rest)
