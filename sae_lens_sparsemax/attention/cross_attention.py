"""Sparse cross-attention from queries to concepts: scores, selection, weighted sum, and their gradients.

With S_n the support of Z_n, Z = Q Kᵀ + b, under sparsemax or another α-entmax of budget 1/g, this computes the
activations on S_n (the scores, or probabilities) and the context P V, in O(N·d·M) for the scores and O(nnz·d) for
everything else:

- scores are made for a block of tokens at a time, selected from, and overwritten; Z is never whole in memory;
- context and dQ are weighted sums of rows of V and K over the CSR lists, a sparse matrix product;
- dA on the support is a sampled product; dK and dV are weighted sums over the transposed (CSC) lists, made at once for
  all uses of a matrix, as keys and as values and by every look, deterministic on the CPU (no scattered additions).

Where supports are dense (early in training, or for `probabilities` trained without a penalty) lists cost more than
matrix products, so the density measured on the first block decides which of the two computes the call.

But: nothing here knows of SAEs; projections, norms and biases of the reconstruction are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from sae_lens_sparsemax.attention import kernels
from sae_lens_sparsemax.attention.gate import check_gate, gate, support_activations, support_gradient
from sae_lens_sparsemax.attention.rows import (
    ColumnSums,
    column_sums,
    refuse_second_derivative,
    row_offsets,
    sampled_product,
    weighted_rows,
)
from sae_lens_sparsemax.attention.screening import Screen
from sae_lens_sparsemax.attention.selection import select, select_over
from sae_lens_sparsemax.attention.shards import ConceptShard
from sae_lens_sparsemax.attention.sparse import coo
from sae_lens_sparsemax.attention.support import Support, select_support
from sae_lens_sparsemax.attention.traceable import check_floating, full_precision, wide


class Attention(NamedTuple):
    """What N queries read from M concepts.

    acts: (N, M) activations, sparse COO (coalesced) where supports are sparse, dense otherwise.
    context: (N, d) P V, or None where no values were given.
    scores: (N, M) like acts, the scores on the support (dense: all of them), without gradient.
    counts: (N,) int64, concepts per token. tau: makes (N,) float64, thresholds in units of g·z, for who asks.
    score_std: standard deviation of all scores of a sample of tokens.
    """

    acts: torch.Tensor
    context: torch.Tensor | None
    scores: torch.Tensor
    counts: torch.Tensor
    tau: Callable[[], torch.Tensor]
    score_std: torch.Tensor


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None,
    bias: torch.Tensor | None = None,
    *,
    gate_scale: float = 1.0,
    probabilities: bool = False,
    alpha: float = 2.0,
    max_density: float | None = None,
    shard: ConceptShard | None = None,
    screens: list[Screen] | None = None,
) -> Attention:
    """Cross-attention of queries over concepts with a sparse gate (the paper's Eq. 3, where that is sparsemax).

    Args:
        query: (N, d). keys: (M, d). values: (M, d), the same tensor as `keys` where concepts are shared, or None where
            no context is wanted. All of one float dtype; half precision is computed in float32, since rounded scores
            select wrong supports.
        bias: (M,), added to the scores, or None.
        gate_scale: g > 0; the support is that of sparsemax(g · Z), or of budget 1/g for another α.
        probabilities: activations that sum to 1 if true (g·z − τ for sparsemax), else the scores z.
        alpha: α >= 2, see `gate`.
        max_density: share of concepts in the supports above which everything is dense; default by device.
        shard: where `keys` are a rank's own concepts, and other ranks, which hold the others, call with the same
            queries. What comes back is of the own concepts, over lists at any density, `context` and `counts` the own
            summands; only `tau` is of whole rows. All ranks ask for it together, and go backwards together.
        screens: see `selection.select`.

    Returns:
        See Attention. Differentiable in query, keys, values and bias through `acts` and `context`; the selection
        itself has no gradient, and outside the support every gradient is exactly zero. Over lists there are first
        derivatives only, and a backward pass with create_graph=True is an error.

    Raises:
        ValueError: shapes do not fit, numbers are whole, or the gate is none (see `check_gate`).
    """
    _check(query, keys, values, bias)
    check_gate(gate_scale, probabilities, alpha)
    with full_precision(query):
        (keys, values), query, bias = watched(keys, values), wide(query), None if bias is None else wide(bias)
        shift = None if bias is None else bias.detach()
        if shard is not None:
            found = select_over(shard, query.detach(), keys.detach(), shift, gate_scale, alpha, screens)
        else:
            found = select(query.detach(), keys.detach(), shift, gate_scale, alpha, max_density, screens)
        if found is None:
            return _attend_dense(query, keys, values, bias, gate_scale, probabilities, alpha)
        support, score_std = found
        shape = (query.shape[0], keys.shape[0])
        index = torch.stack([support.row, support.col])
        acts, context = _SparseAttend.apply(query, keys, values, bias, support, index[0], probabilities)  # type: ignore[misc]
        return Attention(
            acts=coo(index, acts, shape),
            context=context,
            scores=coo(index, support.values, shape),
            counts=support.counts,
            tau=lambda: gate_scale * support.tau,
            score_std=score_std,
        )


def attend_on(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor | None,
    bias: torch.Tensor | None,
    row: torch.Tensor,
    col: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores of given supports, as activations, and their context: attention with its selection made already.

    Args:
        query, keys, values, bias: as for `attend`. row, col: (nnz,) the entries of the supports, row by row.

    Returns:
        (nnz,) scores and (N, d) context, or None where no values were given.
    """
    with full_precision(query):
        (keys, values), query, bias = watched(keys, values), wide(query), None if bias is None else wide(bias)
        with torch.no_grad():
            crow = row_offsets(row, len(query))
            scores = sampled_product(crow, col, query, keys)
            scores = scores if bias is None else scores + bias[col]
        support = Support(crow, col, scores, scores.new_zeros(0), 1.0, 2.0)
        return _SparseAttend.apply(query, keys, values, bias, support, row, False)  # type: ignore[no-any-return]


def weigh(acts: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(N, d) acts · values for (N, M) activations as `attend` returns them, sparse COO or dense, and (M, d) values."""
    with full_precision(values):
        if not acts.is_sparse:
            return acts @ wide(values)
        values = _watched(values)
        row, col = acts.indices()
        crow = row_offsets(row, len(acts))
        return _SparseWeigh.apply(acts.values(), values, crow, col, row)  # type: ignore[no-any-return]


def watched(keys: torch.Tensor, values: torch.Tensor | None) -> tuple[Any, Any]:
    """Keys and values (M, d) in full precision, for several calls to attend to; what is that already, as it is.

    An (M, d) gradient of each call's own would be written, read and added. Instead calls leave in the `sums` of the
    tensors what theirs are sums of, and these are made when the last of them has gone backwards.
    """
    watched_keys = _watched(keys)
    return watched_keys, watched_keys if keys is values else None if values is None else _watched(values)


def _watched(table: torch.Tensor) -> Any:
    if hasattr(table, "sums"):
        return table
    sums = ColumnSums()
    table = _Watched.apply(wide(table), sums)
    table.sums = sums  # type: ignore[attr-defined]
    return table


class _Watched(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table, sums: ColumnSums):
        ctx.sums, ctx.n_concepts = sums, len(table)
        ctx.set_materialize_grads(False)
        return table.view_as(table)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor | None):
        grad, total = grads[0], ctx.sums.total(ctx.n_concepts)
        return total if grad is None else grad if total is None else grad + total, None


class _SparseAttend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, keys, values, bias, support: Support, row, probabilities: bool):  # noqa: ARG004
        acts = support_activations(support, probabilities)
        context = None if values is None else weighted_rows(support.crow, support.col, acts, values)
        ctx.save_for_backward(query, keys, values, acts, row)
        ctx.support, ctx.probabilities = support, probabilities
        ctx.sums = keys.sums, None if values is None else values.sums
        return acts, context

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        refuse_second_derivative()
        grad_acts, grad_context = grads
        query, keys, values, acts, row = ctx.saved_tensors
        support: Support = ctx.support
        grad_context = grad_context if values is None else grad_context.contiguous()
        col = support.col
        d_query = d_bias = None
        centred = ctx.probabilities and (support.alpha != 2 or support.shard is not None)
        if values is not None and kernels.can_hold_rows(values) and not centred:
            from sae_lens_sparsemax.attention.kernels.score_gradients import score_gradients

            d_scores, d_query = score_gradients(
                support.crow,
                support.col,
                grad_acts,
                grad_context,
                keys,
                values,
                1.0 / support.budget,
                ctx.probabilities,
            )
        else:
            d_acts = grad_acts
            if values is not None:
                d_acts = grad_acts + sampled_product(support.crow, support.col, grad_context, values)
            d_scores = support_gradient(d_acts, support, ctx.probabilities)
            if ctx.needs_input_grad[0]:
                d_query = weighted_rows(support.crow, support.col, d_scores, keys)
        of_keys, of_values = ctx.sums
        if ctx.needs_input_grad[1]:
            of_keys.add(col, row, d_scores, query)
        if ctx.needs_input_grad[2]:
            of_values.add(col, row, acts, grad_context)
        if ctx.needs_input_grad[3]:
            d_bias = column_sums(col, d_scores, keys.shape[0])
        return d_query, None, None, d_bias, None, None, None


class _SparseWeigh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, acts, values, crow, col, row):
        ctx.save_for_backward(acts, values, crow, col, row)
        ctx.sums = values.sums
        return weighted_rows(crow, col, acts, values)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):
        refuse_second_derivative()
        acts, values, crow, col, row = ctx.saved_tensors
        grad = grads[0].contiguous()
        if ctx.needs_input_grad[1]:
            ctx.sums.add(col, row, acts, grad)
        d_acts = sampled_product(crow, col, grad, values) if ctx.needs_input_grad[0] else None
        return d_acts, None, None, None, None


def _attend_dense(query, keys, values, bias, gate_scale: float, probabilities: bool, alpha: float) -> Attention:
    scores = query @ keys.T
    if bias is not None:
        scores = scores + bias
    acts = gate(scores, gate_scale, probabilities, alpha)
    scores = scores.detach()

    def tau() -> torch.Tensor:
        return gate_scale * select_support(scores, 1.0 / gate_scale, alpha).tau

    counts = acts.detach().count_nonzero(-1)
    return Attention(
        acts, None if values is None else acts @ values, scores, counts, tau, scores[:16].std(correction=0)
    )


def _check(query, keys, values, bias) -> None:
    for name, tensor in (("query", query), ("keys", keys), ("values", values), ("bias", bias)):
        if tensor is not None:
            check_floating(name, tensor)
    fits = (
        query.ndim == keys.ndim == 2
        and (values is None or keys.shape == values.shape)
        and query.shape[1] == keys.shape[1]
    )
    if not fits:
        raise ValueError(
            "expected query (N, d) and keys and values (M, d), got "
            f"{tuple(query.shape)}, {tuple(keys.shape)} and {tuple(keys.shape if values is None else values.shape)}"
        )
    if bias is not None and bias.shape != keys.shape[:1]:
        raise ValueError(f"expected bias ({keys.shape[0]},), got {tuple(bias.shape)}")
