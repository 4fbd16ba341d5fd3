"""Which concepts are active on the same tokens, from a sample of tokens small enough to be held."""

from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from sae_lens_sparsemax.evaluation.activations import SparseActs

MAX_TOKENS = 20_000
MAX_ENTRIES = 4_000_000
_BLOCK = 512
# A pair seen together less often says nothing.
MIN_TOGETHER = 3


class TokenSample:
    """The active concepts of every `stride`-th token, up to MAX_TOKENS of them and MAX_ENTRIES activations."""

    def __init__(self, d_sae: int, n_tokens_expected: int) -> None:
        self.d_sae = d_sae
        self.stride = max(1, -(-n_tokens_expected // MAX_TOKENS))
        self.n_seen, self.n_tokens = 0, 0
        self.row = torch.zeros(0, dtype=torch.int32)
        self.col = torch.zeros(0, dtype=torch.int32)

    def add(self, acts: SparseActs) -> None:
        """Add tokens in their order."""
        number = torch.arange(self.n_seen, self.n_seen + acts.n_rows)
        self.n_seen += acts.n_rows
        chosen = number % self.stride == 0
        if not chosen.any() or len(self.col) >= MAX_ENTRIES or self.n_tokens >= MAX_TOKENS:
            return
        place = chosen.cumsum(0) - 1 + self.n_tokens
        row, col = acts.row.cpu(), acts.col.cpu()
        mine = chosen[row]
        self.row = torch.cat([self.row, place[row[mine]].int()])
        self.col = torch.cat([self.col, col[mine].int()])
        self.n_tokens += int(chosen.sum())


class Neighbours(NamedTuple):
    """For every concept its nearest others, best first."""

    concept: torch.Tensor
    """Shape (d_sae, k), int64; -1 where there are fewer than k."""
    value: torch.Tensor
    """Shape (d_sae, k): how near."""


def cofiring_concepts(sample: TokenSample, k: int, *, progress: bool = True) -> Neighbours:
    """
    The k concepts that share most tokens with each concept, by n_both / n_either (the Jaccard index).

    Pairs seen together on fewer than MIN_TOGETHER tokens of the sample are left out. Counts are made for a block
    of concepts at a time, so the square of d_sae is never held.
    """
    d_sae, k = sample.d_sae, min(k, sample.d_sae)
    concept = torch.full((d_sae, k), -1, dtype=torch.int64)
    value = torch.zeros(d_sae, k)
    col, row = sample.col.long(), sample.row.long()
    n_active = torch.bincount(col, minlength=d_sae).float()
    by_concept = torch.sparse_coo_tensor(
        torch.stack([col, row]), torch.ones(len(col)), (d_sae, max(1, sample.n_tokens)), check_invariants=False
    ).coalesce()
    order = col.argsort(stable=True)
    row_by_concept, start = row[order], torch.cat([torch.zeros(1), n_active]).cumsum(0).long()
    for first in tqdm(range(0, d_sae, _BLOCK), desc="Co-firing", disable=not progress, leave=False):
        last = min(first + _BLOCK, d_sae)
        rows = row_by_concept[start[first] : start[last]]
        if not len(rows):
            continue
        owner = torch.repeat_interleave(torch.arange(last - first), n_active[first:last].long())
        block = torch.zeros(max(1, sample.n_tokens), last - first)
        block[rows, owner] = 1
        together = torch.sparse.mm(by_concept, block).T
        jaccard = together / (n_active[first:last, None] + n_active - together).clamp(min=1)
        jaccard[together < MIN_TOGETHER] = 0
        jaccard[torch.arange(last - first), torch.arange(first, last)] = 0
        best = jaccard.topk(k, dim=-1)
        value[first:last] = best.values
        concept[first:last] = torch.where(best.values > 0, best.indices, -1)
    return Neighbours(concept, value)
