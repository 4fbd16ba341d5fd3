"""The kernels against sorting and dense products on a small problem, before a device trusts its data to them."""

from __future__ import annotations

import torch

from sae_lens_sparsemax.attention.kernels.score_gradients import score_gradients
from sae_lens_sparsemax.attention.kernels.selection import select
from sae_lens_sparsemax.attention.kernels.weighted_rows import weighted_rows


def differences(device: torch.device) -> str | None:
    """What the kernels get wrong on this device, or None; what is right is computed on the CPU in float64."""
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

    crow, index, acts = found[:3]
    table, upstream = keys.to(device), d_context.to(device)
    if not _close(weighted_rows(crow, index, acts, table), torch.where(mask, scores, 0).double() @ keys.double()):
        return "weighted sums differ"
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
