"""Where scores in bfloat16 exceed what they must, on the CPU: as integers, and reading few of them twice.

Positive bfloat16 numbers are in the order of their bits read as 16-bit integers, of which torch finds the largest and
compares many times as fast. Negative ones are in the opposite order, so as integers they are below every positive one,
as they should be, but not in order among each other. That matters only where negative numbers decide, and for those
the bits that give them their size are turned around first, all in place.

But: which numbers scores must exceed is `screening`'s to say, and GPUs have kernels (`kernels.candidates`).
"""

from __future__ import annotations

import torch

# Concepts per chunk, for each of which and each token a number must be exceeded, and per group, whose maxima tell where
# in a chunk to look.
CHUNK, GROUP = 32, 8
# Whose scores are turned around together, in cache.
CONCEPTS_AT_ONCE = 512
_SIZE_16, _SIZE_32 = 2**15 - 1, 2**31 - 1
_MINUS_INFINITY = -(2**7)


class RankedScores:
    """The scores of n tokens for C chunks of concepts.

    Args:
        scores: (C · CHUNK, n) bfloat16, contiguous, no NaN, −inf as padding in the last chunk alone; what is in them
            afterwards is nobody's to read.
    """

    def __init__(self, scores: torch.Tensor) -> None:
        self._ranks = scores.view(torch.int16)
        self._negatives_in_order = False
        self._groups, self._chunks = self._maxima()
        # Of a token without positive scores, or of a chunk whose least is padding, `maxima` would say nothing.
        if bool((self._chunks.amax(0) < 0).any()) or bool((self._chunks[-1] == _MINUS_INFINITY).any()):
            self.order_negatives()

    def maxima(self) -> torch.Tensor:
        """(C, n) bfloat16, the largest score of each chunk; of negative ones alone the least while out of order."""
        ranks = _turned(self._chunks) if self._negatives_in_order else self._chunks
        return ranks.view(torch.bfloat16)

    def order_negatives(self) -> bool:
        """Let negative numbers decide too, for half as much time as all else takes; false if they did already."""
        if self._negatives_in_order:
            return False
        for ranks in self._ranks.split(CONCEPTS_AT_ONCE):
            ranks.copy_(_turned(ranks))
        self._negatives_in_order = True
        self._groups, self._chunks = self._maxima()
        return True

    def above(self, least: torch.Tensor, most: float) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Where scores exceed (C, n) numbers: (nnz,) tokens and concepts, by token and concept; None if more than most.

        The numbers are not negative where negative scores are not in order. A score that equals its number but for the
        sign of zero may be among them.
        """
        n_concepts, n = self._ranks.shape
        least_rank = _rank_below(least)
        groups = self._groups.view(len(least), -1, n)
        # Into integers of the same size comparisons are vectorized, into booleans they are not.
        at = _few(torch.gt(groups, least_rank[:, None], out=torch.empty_like(groups)))
        # Each of these groups holds such a score.
        if len(at) > most:
            return None
        group = at // n
        token = at - group * n
        scores = self._ranks.view(-1, GROUP, n).transpose(1, 2)[group, token]
        must = least_rank.view(-1)[group // (CHUNK // GROUP) * n + token]
        found = torch.gt(scores, must[:, None], out=torch.empty_like(scores)).view(-1).nonzero().squeeze(1)
        if len(found) > most:
            return None
        which = found // GROUP
        place = token[which] * n_concepts + group[which] * GROUP + found % GROUP
        # Half the bytes, half the time.
        place = (place.int() if self._ranks.numel() < 2**31 else place).sort().values.long()
        token = place // n_concepts
        return token, place - token * n_concepts

    def _maxima(self) -> tuple[torch.Tensor, torch.Tensor]:
        n = self._ranks.shape[1]
        groups = self._ranks.view(-1, GROUP, n).amax(1)
        return groups, groups.view(-1, CHUNK // GROUP, n).amax(1)


def _turned(ranks: torch.Tensor) -> torch.Tensor:
    """int16, negative numbers' bits but for the sign turned around: in order from out of order, and back."""
    return ranks ^ (ranks >> 15).bitwise_and_(_SIZE_16)


def _rank_below(values: torch.Tensor) -> torch.Tensor:
    """int16, ranks (in order) of the largest bfloat16 numbers that do not exceed float32 ones."""
    bits = values.view(torch.int32)
    ranks = (bits >> 31).bitwise_and_(_SIZE_32).bitwise_xor_(bits)
    # A negative number of bfloat16 has 16 ones at its end now, where a positive one has zeros.
    ranks -= (ranks >> 31).bitwise_and_(2**16 - 1)
    return (ranks >> 16).to(torch.int16)


def _few(mask: torch.Tensor) -> torch.Tensor:
    """(nnz,) where an int16 mask, flattened, a multiple of four long, is not zero: four at a time, then one by one."""
    fours = mask.view(-1).view(torch.int64)
    some = fours.nonzero().squeeze(1)
    found = fours.index_select(0, some).view(torch.int16).nonzero().squeeze(1)
    return some.index_select(0, found >> 2) * 4 + (found & 3)
