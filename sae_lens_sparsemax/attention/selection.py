"""Which concepts each query selects: supports of scores Q Kᵀ + b, made and read a block of tokens at a time.

A block's scores are overwritten by the next one's, so no matrix of all scores is ever whole in memory.

But: no gradients, which exist on the supports alone; `cross_attention` has them.
"""

from __future__ import annotations

import torch

from sae_lens_sparsemax.attention import entmax, screening
from sae_lens_sparsemax.attention.rows import joined_offsets, row_offsets
from sae_lens_sparsemax.attention.screening import Screen
from sae_lens_sparsemax.attention.shards import ConceptShard
from sae_lens_sparsemax.attention.support import (
    Support,
    UnrankableScores,
    check_row_maxima,
    sampled_std,
    select_support,
)

# Tokens per block of scores: each block packs the concepts anew, which a taller block spreads over more tokens.
MIN_BLOCK_ROWS = 512
# On a GPU a block must be large enough for its product to hide a handful of launches.
BLOCK_SCORES = {"cpu": 2**22, "cuda": 2**27}
# Share of concepts in the support above which matrix products beat lists; measured, on a GPU (an H200) up to this one.
MAX_SPARSE_DENSITY = {"cpu": 0.12, "cuda": 0.1}


def select(
    query: torch.Tensor,
    keys: torch.Tensor,
    bias: torch.Tensor | None = None,
    gate_scale: float = 1.0,
    alpha: float = 2.0,
    max_density: float | None = None,
    screens: list[Screen] | None = None,
) -> tuple[Support, torch.Tensor] | None:
    """Supports of the scores Q Kᵀ + b, block of tokens by block, without gradient.

    Args:
        query: (N, d), keys: (M, d), bias: (M,) or None, all float32 or all float64.
        gate_scale: g > 0. alpha: α >= 2, see `gate`.
        max_density: give up when a block's supports hold a larger share of the concepts; default by device.
        screens: one list for all calls with the same keys, bias and number of queries, which then share a screen.

    Returns:
        The supports and the standard deviation of the scores of a sample of tokens, or None if it gave up.
    """
    n_tokens, n_concepts = query.shape[0], keys.shape[0]
    if max_density is None:
        max_density = MAX_SPARSE_DENSITY.get(query.device.type, MAX_SPARSE_DENSITY["cuda"])
    block_scores = BLOCK_SCORES.get(query.device.type, BLOCK_SCORES["cuda"])
    block_rows = min(n_tokens, max(MIN_BLOCK_ROWS, block_scores // n_concepts))
    screen = screening.screen_for(query, keys, bias, block_rows, screens)
    budget = entmax.whole_budget(1.0 / gate_scale, alpha)
    buffer: torch.Tensor | None = None
    score_std = query.new_zeros(())
    parts: list[Support] = []
    start = 0
    if screen is not None and (screened := screen.select(query, budget, alpha)) is not None:
        # What kept a block from being screened holds for those after it as a rule.
        part, score_std = screened
        parts.append(part)
        start = len(part.row_max)
        if part.col.numel() > max_density * start * n_concepts:
            return None
    while start < n_tokens:
        block = query[start : start + block_rows]
        buffer = query.new_empty(block_rows, n_concepts) if buffer is None else buffer
        scores = torch.mm(block, keys.T, out=buffer[: len(block)])
        if bias is not None:
            scores += bias
        part = select_support(scores, budget, alpha)
        if start == 0:
            score_std = sampled_std(scores, query.dtype)
        if part.col.numel() > max_density * len(block) * n_concepts:
            return None
        parts.append(part)
        start += len(block)
    if not parts:
        return select_support(query.new_empty(0, n_concepts), budget, alpha), score_std
    return _concatenate(parts), score_std


def select_over(
    shard: ConceptShard,
    query: torch.Tensor,
    keys: torch.Tensor,
    bias: torch.Tensor | None,
    gate_scale: float,
    alpha: float,
    screens: list[Screen] | None = None,
) -> tuple[Support, torch.Tensor]:
    """`select` where the rows go on on other ranks: the own part of the supports, which a rank may have none of."""
    n_tokens, n_concepts = query.shape[0], keys.shape[0]
    found, largest = None, -torch.inf
    if n_concepts:
        try:
            found = select(query, keys, bias, gate_scale, alpha, 1.0, screens)
        except UnrankableScores:
            largest = torch.inf  # for all ranks to learn
    if found is None:
        nothing = torch.zeros(0, dtype=torch.int64, device=query.device)
        row_max = query.new_full((n_tokens,), largest, dtype=torch.float64)
        budget = entmax.whole_budget(1.0 / gate_scale, alpha)
        own = Support(nothing.new_zeros(n_tokens + 1), nothing, query.new_zeros(0), row_max, budget, alpha)
        found = own, query.new_zeros(())
    own, score_std = found
    row = own.row
    keep, row_max = shard.settle(own.values, row, own.row_max, own.budget, alpha)
    check_row_maxima(row_max)
    crow, col, values = row_offsets(row[keep], n_tokens), own.col[keep], own.values[keep]
    return Support(crow, col, values, row_max, own.budget, alpha, shard), score_std


def _concatenate(parts: list[Support]) -> Support:
    if len(parts) == 1:
        return parts[0]
    crow = joined_offsets([part.crow for part in parts])
    col, values, row_max = (torch.cat(columns) for columns in zip(*(part[1:4] for part in parts), strict=True))
    return Support(crow, col, values, row_max, parts[0].budget, parts[0].alpha)
