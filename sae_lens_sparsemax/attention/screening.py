"""Which concepts are worth an exact score: supports by way of a product in bfloat16, exact all the same.

Where bfloat16 products are several times faster than float32 ones, a block's scores are first made in bfloat16. A bound
on their error that holds for every input leaves a few candidates of each row; only those are scored in float32, by
the sampled product, and settled by the float64 computation that settles everything (`support.settle`). So the support
is that of the float32 scores which become the activations, whatever bfloat16 made of the others.

The bound. Let q̃, k̃ be the roundings of q and k to bfloat16, z the number stored for their product, s the float32
score, with bias β rounded to β̃. Every operation below is a rounding by at most a share u of the result, u = 2⁻⁸ for
bfloat16 and 2⁻²⁴ for float32, up to what underflow takes.

1. |q·k − q̃·k̃| = |(q − q̃)·k + q̃·(k − k̃)| ≤ ‖q − q̃‖‖k‖ + ‖q̃‖‖k − k̃‖ by Cauchy and Schwarz. The differences are exact in
   float32, so their norms are known, and ‖q̃‖ ≤ (1 + 2⁻⁸)‖q‖.
2. A sum of d products in float32, in any order, with or without fused operations, errs by at most
   ((1 + v)^(d+1) − 1) Σ|q_i k_i| ≤ 1.01 (d + 1) v ‖q‖‖k‖ for d ≤ 2¹⁴. For s, v = 2⁻²⁴; for the sum behind z it may be
   2⁻²³, as of hardware that truncates. Together they are below (d + 1) 2⁻²² ‖q‖‖k‖, since ‖q̃‖‖k̃‖ ≤ 1.01 ‖q‖‖k‖.
3. Storing errs by at most u|z|. A bias is added to what was stored, and the sum is stored again: that errs by at most
   u|z| once more, and the first error is at most u((1 + u)|z| + |β̃|).
4. Underflow takes at most 2⁻¹²⁶ from each of the 4d + 4 operations on scores, from each component that is rounded, and
   from each square in a norm, which lowers a norm by at most √d·2⁻⁶³ =: η. Where norms reach no more than 2⁶⁰, nothing
   overflows: by Cauchy and Schwarz no partial sum exceeds their product.

So |s − z| ≤ r|z| + e with r = u (2u + u² with a bias) and

    e = (‖q − q̃‖ + (d + 1) 2⁻²² ‖q‖)‖k‖ + (1 + 2⁻⁸)‖q‖‖k − k̃‖ + |β − β̃| + u|β̃| + (d + 1) 2⁻¹²⁴,

norms raised by η. r and e are computed a 128th larger, for the float32 rounding of everything in them (norms err by a
share of at most 2⁻¹⁰, the rest by less). Norms of keys are the largest of a chunk of concepts, so that few large keys
do not widen the bound of all others. z ± (r|z| + e) grows with z, so the largest z of a chunk bounds its largest score
from below and all of its scores from above: the former bound τ from below (`support.threshold_bound`), and a score
whose upper bound does not exceed that is in no support.

Where it stays as it was: float64; values so large or small, ties so many or supports so dense that too many candidates
are left (the rest of the call is then scored in float32 throughout); devices without fast bfloat16.

A score of the sampled product may differ in its last bit from that of the whole product, and a support where scores
nearly tie. So whether a call is screened is decided by the machine, its settings and the shapes alone, and whether it
goes on by its input, never by a clock: a run resumed on the same machine ends with the same bits. For the same reason
the keys' roundings serve the passes of one reading and are made anew for the next: a tensor's version does not tell of
fused optimizers' steps or of changes of `.data`.

But: where it pays was measured on one GPU, an H200, and on two cores with AMX; others go by these.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sae_lens_sparsemax.attention import kernels
from sae_lens_sparsemax.attention.candidates import CHUNK, RankedScores
from sae_lens_sparsemax.attention.rows import joined_offsets, row_offsets, sampled_product
from sae_lens_sparsemax.attention.support import Support, sampled_std, settle, threshold_bound, tightened

# By type of device: whether to screen, None to leave it to `is_worthwhile`. No other device ever screens.
SCREEN: dict[str, bool | None] = {"cpu": None, "cuda": None}
# On two cores with AMX, screening won by a seventh at this width, by a third at twice it, and with one pass lost at
# half of it; and keys must be converted, which fewer tokens do not repay (an estimate).
MIN_CONCEPTS, MIN_TOKENS = 12_288, 512
# On an H200 it won with so many scores and drew with half as many, where launches take the time and not the product.
MIN_SCORES_ON_GPU = 2**25
# Tokens per block on the CPU, where each block packs the keys anew. A chunk of them lies in the first cache, and scores
# and keys in half precision together in no more memory than the whole pass takes at its peak.
BLOCK_ROWS = 512
# Above this share of candidates a product of everything is cheaper than one by one.
MAX_CANDIDATES = 1 / 64
# Keys that torch converts at once, in cache.
PIECE = 128
MAX_WIDTH, MAX_NORM = 2**14, 2.0**60
UNIT, WIDER = 2.0**-8, 1 + 2.0**-7


@functools.cache
def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 in units of their own (AMX), and may use them."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "DEFAULT")).upper()
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities().get("amx_bf16")
    else:  # older versions of torch; whatever has tiles multiplies bfloat16 in them
        found = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return bool(found) and (limit in ("DEFAULT", "ALL") or "AMX" in limit)


def is_worthwhile(n_tokens: int, n_concepts: int, device: torch.device) -> bool:
    """Whether screening is faster than float32 scores, by the device, torch's settings and the shapes."""
    if device.type == "cuda":
        if n_tokens * n_concepts < MIN_SCORES_ON_GPU:
            return False
        # From Ampere on tensor cores multiply bfloat16 an order of magnitude faster than the other units do float32;
        # who allows TF32 has float32 products from tensor cores too, at half of bfloat16's rate.
        return torch.cuda.get_device_capability(device) >= (8, 0) and torch.get_float32_matmul_precision() == "highest"
    if n_tokens < MIN_TOKENS or n_concepts < MIN_CONCEPTS or not has_fast_bfloat16():
        return False
    # Who allows float32 products in bfloat16 has them as fast already.
    products = getattr(torch.backends.mkldnn, "matmul", None)  # older versions of torch have no such setting
    return torch.backends.mkldnn.enabled and getattr(products, "fp32_precision", "") != "bf16"


def screen_for(
    query: torch.Tensor,
    keys: torch.Tensor,
    bias: torch.Tensor | None,
    block_rows: int,
    made: list[Screen] | None = None,
) -> Screen | None:
    """The screen for queries (N, d) over keys (M, d) and bias (M,) or None; None where it is of no use.

    Args:
        block_rows: tokens per block of float32 scores.
        made: where the screen of these keys, this bias and as many queries is, if there is one already, and is put.
    """
    (n_tokens, width), n_concepts = query.shape, len(keys)
    wanted = SCREEN.get(query.device.type, False)
    if wanted is None:
        wanted = is_worthwhile(n_tokens, n_concepts, query.device)
    if not wanted or query.dtype != torch.float32 or not 0 < width <= MAX_WIDTH or not n_tokens * n_concepts:
        return None
    made = [] if made is None else made
    if not made:
        made.append(Screen(keys, bias, min(n_tokens, BLOCK_ROWS if query.device.type == "cpu" else block_rows)))
    return made[0] if made[0].is_safe else None


class Screen:
    """Keys and bias in bfloat16 with what their rounding costs, for the blocks of one call.

    Args:
        keys: (M, d) float32. bias: (M,) float32 or None. block_rows: the most queries of a block.
    """

    def __init__(self, keys: torch.Tensor, bias: torch.Tensor | None, block_rows: int) -> None:
        self._keys, self._bias, self.block_rows = keys, bias, block_rows
        # On the CPU concepts come first in memory: a chunk of them is then reduced along its rows, and what the product
        # must repack is the small block of queries. The kernels read rows of queries.
        self._rows_come_first = keys.is_cuda
        self._n_concepts, width = keys.shape
        padded = self._n_concepts + -self._n_concepts % CHUNK
        self._underflow = 2.0**-63 * width**0.5
        self._rounded = keys.new_empty(padded, width, dtype=torch.bfloat16)
        self._rounded[self._n_concepts :] = 0
        norm, lost = keys.new_zeros(2, padded)
        piece = self._n_concepts if kernels.can_hold_rows(keys) else PIECE
        for start in range(0, self._n_concepts, piece):
            here = slice(start, min(start + piece, self._n_concepts))
            _round(keys[here], self._rounded[here], norm[here], lost[here])
        # (C,) by chunk.
        norm, lost = (_chunk_maxima(values) + self._underflow for values in (norm, lost))
        self.share, more = WIDER * UNIT, torch.zeros_like(norm)
        self.is_safe = bool(norm.amax() <= MAX_NORM)
        self._rounded_bias = None
        if bias is not None:
            self._rounded_bias = keys.new_zeros(padded, dtype=torch.bfloat16)
            self._rounded_bias[: self._n_concepts] = bias
            rounded = self._rounded_bias[: self._n_concepts].float()
            extra = keys.new_zeros(padded)
            extra[: self._n_concepts] = (bias - rounded).abs() + UNIT * rounded.abs()
            self.share, more = WIDER * (2 * UNIT + UNIT**2), WIDER * _chunk_maxima(extra)
            self.is_safe = self.is_safe and bool(bias.abs().amax() <= MAX_NORM**2)
        self._of_chunk = torch.stack([norm, lost, more + (width + 1) * 2.0**-124])
        self._buffer = self._rounded.new_empty(padded * block_rows)

    def scores(self, query: torch.Tensor) -> torch.Tensor:
        """(n, M) scores of a block of queries, in memory of the next block's."""
        scores = self._block(len(query))
        left, right = self._rounded, query.bfloat16().T
        with _float32_sums():
            torch.mm(right.T, left.T, out=scores.T) if self._rows_come_first else torch.mm(left, right, out=scores)
        if self._rounded_bias is not None:
            scores += self._rounded_bias[:, None]
        scores[self._n_concepts :] = -torch.inf
        return scores[: self._n_concepts].T

    def _block(self, n: int) -> torch.Tensor:
        """(M, n) memory for the scores of n queries."""
        memory = self._buffer[: len(self._rounded) * n]
        return memory.view(n, -1).T if self._rows_come_first else memory.view(-1, n)

    def error(self, query: torch.Tensor) -> torch.Tensor | None:
        """(n, C) the e of each of n queries and chunk of concepts; None where scores might overflow."""
        if (terms := self._error_terms(query)) is None:
            return None
        (first, second), (norm, lost, extra) = terms[0].unbind(1), terms[1]
        return (first[:, None] * norm).addcmul_(second[:, None], lost).add_(extra)

    def _error_terms(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Of n queries and C chunks, what e is made of: (n, 2) a and c, (3, C) k, l and x of e = a·k + c·l + x."""
        n, width = query.shape
        norm, lost = query.new_empty(2, n)
        _round(query, torch.empty_like(query, dtype=torch.bfloat16), norm, lost)
        norm, lost = norm + self._underflow, lost + self._underflow
        if not bool(norm.amax() <= MAX_NORM):
            return None
        of_query = torch.stack([lost + (width + 1) * 2.0**-22 * norm, (1 + UNIT) * norm], 1)
        return WIDER * of_query, self._of_chunk

    def select(self, query: torch.Tensor, budget: float, alpha: float) -> tuple[Support, torch.Tensor] | None:
        """The supports of as many of N tokens, from the first on, as can be screened; None if the first block cannot.

        Args: (N, d) queries; b, whole for TopK; α >= 2.

        Returns:
            The supports of n tokens, and the standard deviation of the scores of a sample of the first block's.
        """
        lists, score_std = [], query.new_zeros(())
        for block in query.split(self.block_rows):
            scores = self.scores(block)
            score_std = score_std if lists else sampled_std(scores, query.dtype)
            if (found := self.candidates(block, budget, alpha)) is None:
                break
            lists.append(found)
        if not lists:
            return None
        crow, col = joined_offsets([block for block, _ in lists]), torch.cat([block for _, block in lists])
        # For all blocks at once, so that a concept that several ask for is read once.
        query = query[: len(crow) - 1]
        values = sampled_product(crow, col, query, self._keys)
        if self._bias is not None:
            values += self._bias[col]
        row_max = torch.segment_reduce(values, "max", offsets=crow).double()
        values, crow, col = tightened(values, crow, col, row_max, budget, alpha)
        return settle(values, crow, col, row_max, budget, alpha), score_std

    def candidates(self, query: torch.Tensor, budget: float, alpha: float) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What the supports of the block whose `scores` were made last may hold; None if that is too much.

        Args: (n, d) the block's queries; b, whole for TopK; α >= 2.

        Returns:
            crow: (n + 1,) and col: (nnz,), CSR lists with sorted columns.
        """
        n = len(query)
        most = MAX_CANDIDATES * n * self._n_concepts
        if kernels.usable(query):
            from sae_lens_sparsemax.attention.kernels.candidates import candidates

            terms = self._error_terms(query)
            scores = self._block(n)[: self._n_concepts].T
            return None if terms is None else candidates(scores, *terms, CHUNK, self.share, budget, alpha, most)
        error = self.error(query)
        if error is None:
            return None
        ranked = RankedScores(self._block(n).contiguous())
        least = self._least(ranked.maxima(), error, budget, alpha)
        if least.min().item() < 0 and ranked.order_negatives():
            least = self._least(ranked.maxima(), error, budget, alpha)
        if (found := ranked.above(least.T.contiguous(), most)) is None:
            return None
        row, col = found
        return row_offsets(row, n), col

    def _least(self, maxima: torch.Tensor, error: torch.Tensor, budget: float, alpha: float) -> torch.Tensor:
        """(n, C) what candidates exceed, by (C, n) numbers that do not exceed the maxima of chunks."""
        maxima = maxima.T.contiguous().float()
        below = (maxima.abs() * -self.share).add_(maxima).sub_(error)
        bound = threshold_bound(below, below.amax(-1, keepdim=True), budget, alpha)
        # z + r|z| + e > bound  ⇒  z > w − r/(1 − r)·|w|, where w = bound − e.
        least = bound - error
        return least.sub_(self.share / (1 - self.share) * least.abs())


@contextmanager
def _float32_sums() -> Iterator[None]:
    """A product on a GPU is otherwise free to add up parts of its sums in bfloat16, which no bound here covers."""
    products = torch.backends.cuda.matmul
    if not torch.cuda.is_available() or not products.allow_bf16_reduced_precision_reduction:
        yield
        return
    in_parts = getattr(products, "allow_bf16_reduced_precision_reduction_split_k", True)
    products.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        products.allow_bf16_reduced_precision_reduction = True if in_parts else (True, False)


def _round(rows: torch.Tensor, rounded: torch.Tensor, norm: torch.Tensor, lost: torch.Tensor) -> None:
    """Write (n, d) float32 rows in bfloat16, their norms and those of what rounding changed into given memory."""
    if kernels.can_hold_rows(rows):
        from sae_lens_sparsemax.attention.kernels.rounding import round_rows

        round_rows(rows.contiguous(), rounded, norm, lost)
        return
    rounded.copy_(rows)
    torch.linalg.vector_norm(rows, dim=1, out=norm)
    torch.linalg.vector_norm(torch.empty_like(rows).copy_(rounded).sub_(rows), dim=1, out=lost)


def _chunk_maxima(values: torch.Tensor) -> torch.Tensor:
    return values.view(-1, CHUNK).amax(-1)
