"""Which concepts are active on the same tokens, from a sample of tokens small enough to be held."""

from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from sae_lens_sparsemax.models.encoding import SparseActs

MAX_TOKENS = 20_000
MAX_PAIRS = 200_000_000
"""Of concepts on the same token, over all tokens of a sample: what counting them takes."""
# Pairs counted at a time: 100 MB.
_PAIRS_AT_A_TIME = 4_000_000
# A pair seen together less often says nothing.
MIN_TOGETHER = 3


class TokenSample:
    """The active concepts of every `stride`-th token, up to MAX_TOKENS of them and about MAX_PAIRS pairs."""

    def __init__(self, d_sae: int, n_tokens_expected: int) -> None:
        self.d_sae = d_sae
        self.stride = max(1, -(-n_tokens_expected // MAX_TOKENS))
        self.n_seen, self.n_tokens, self.n_pairs = 0, 0, 0
        self.row = torch.zeros(0, dtype=torch.int32)
        self.col = torch.zeros(0, dtype=torch.int32)

    def add(self, acts: SparseActs) -> None:
        """Add tokens in their order."""
        number = torch.arange(self.n_seen, self.n_seen + acts.n_rows)
        self.n_seen += acts.n_rows
        chosen = number % self.stride == 0
        if not chosen.any() or self.n_pairs >= MAX_PAIRS or self.n_tokens >= MAX_TOKENS:
            return
        place = chosen.cumsum(0) - 1 + self.n_tokens
        row, col = acts.row.cpu(), acts.col.cpu()
        mine = chosen[row]
        self.row = torch.cat([self.row, place[row[mine]].int()])
        self.col = torch.cat([self.col, col[mine].int()])
        self.n_tokens += int(chosen.sum())
        self.n_pairs += int(torch.bincount(row[mine], minlength=1).square().sum())


class Neighbours(NamedTuple):
    """For every concept its nearest others, best first."""

    concept: torch.Tensor
    """Shape (d_sae, k), int64; -1 where there are fewer than k."""
    value: torch.Tensor
    """Shape (d_sae, k): how near."""


def cofiring_concepts(sample: TokenSample, k: int, *, progress: bool = True) -> Neighbours:
    """The k concepts that share most tokens with each concept, by n_both / n_either (the Jaccard index).

    Pairs seen together on fewer than MIN_TOGETHER tokens of the sample are left out. Only pairs that occur are
    counted, those of a few concepts at a time, so the square of d_sae is never held.
    """
    d_sae, k = sample.d_sae, min(k, sample.d_sae)
    found = Neighbours(torch.full((d_sae, k), -1, dtype=torch.int64), torch.zeros(d_sae, k))
    row, col = sample.row.long(), sample.col.long()
    l0 = torch.bincount(row, minlength=sample.n_tokens)
    token_start = l0.cumsum(0) - l0
    order = col.argsort(stable=True)
    n_active = torch.bincount(col, minlength=d_sae)
    # Pairs up to and with each concept say where a block of concepts ends.
    n_pairs = torch.zeros(d_sae, dtype=torch.int64).index_add_(0, col, l0[row]).cumsum(0)
    block_of = n_pairs // _PAIRS_AT_A_TIME
    ends = [*(block_of.diff().nonzero().flatten() + 1).tolist(), d_sae]
    entry_end = n_active.cumsum(0)
    first = 0
    for last in tqdm(ends, desc="Co-firing", disable=not progress, leave=False):
        entries = order[int(entry_end[first] - n_active[first]) : int(entry_end[last - 1])]
        _count_block(found, entries, row, col, l0, token_start, n_active)
        first = last
    return found


def _count_block(
    found: Neighbours,
    entries: torch.Tensor,
    row: torch.Tensor,
    col: torch.Tensor,
    l0: torch.Tensor,
    token_start: torch.Tensor,
    n_active: torch.Tensor,
) -> None:
    """Fill in the concepts whose activations, all of them, are `entries`."""
    d_sae, k = found.concept.shape
    length = l0[row[entries]]
    within = torch.arange(int(length.sum())) - (length.cumsum(0) - length).repeat_interleave(length)
    other = col[token_start[row[entries]].repeat_interleave(length) + within]
    pairs, together = (col[entries].repeat_interleave(length) * d_sae + other).unique(return_counts=True)
    concept, other = pairs // d_sae, pairs % d_sae
    usable = (together >= MIN_TOGETHER) & (concept != other)
    concept, other, together = concept[usable], other[usable], together[usable]
    jaccard = together / (n_active[concept] + n_active[other] - together)
    best = jaccard.argsort(descending=True, stable=True)
    best = best[concept[best].argsort(stable=True)]
    n_others = torch.bincount(concept, minlength=d_sae)
    rank = torch.arange(len(best)) - (n_others.cumsum(0) - n_others)[concept[best]]
    best, rank = best[rank < k], rank[rank < k]
    found.concept[concept[best], rank] = other[best]
    found.value[concept[best], rank] = jaccard[best]
