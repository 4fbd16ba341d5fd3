"""Concepts spread over ranks: the supports, activations, contexts and gradients of one process."""

import itertools
import math

import pytest
import torch
import torch.distributed as dist

from sae_lens_sparsemax.attention import selection
from sae_lens_sparsemax.attention.cross_attention import attend
from sae_lens_sparsemax.attention.shards import ConceptShard, _floats, _ordered, _rounds
from tests.support.ranks import ALL_MEMBERS, on_ranks

N_TOKENS, WIDTH = 12, 16  # of each rank
KINDS = ("gauss", "heavy", "tied", "one shard", "zero", "huge")
GRID = list(
    itertools.product(
        KINDS,
        (512, 103, 5, 2),
        ("shared", "separate"),
        [(2.0, False), (2.0, True), (3.0, False), (3.0, True), (2.5, False), (5.0, True), (math.inf, False)],
        (0.15, 1.0, 7.3),
        (torch.float64, torch.float32),
    )
)


def inputs(kind: str, n: int, m: int, n_ranks: int, seed: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    query, keys, values, bias, grad = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((n, WIDTH), (m, WIDTH), (m, WIDTH), (m,), (n, WIDTH))
    )
    query, keys = query / query.norm(dim=1, keepdim=True), keys / keys.norm(dim=1, keepdim=True)
    if kind == "heavy":
        keys = keys * torch.exp(torch.randn(m, 1, generator=draw, dtype=torch.float64))
    if kind == "tied":  # concepts three times over, across shards, and scores on a grid
        keys = keys[torch.arange(m) % max(1, m // 3)]
        keys, query, bias = (keys * 8).round() / 8, (query * 8).round() / 8, torch.zeros_like(bias)
    if kind == "one shard":
        size = -(-m // n_ranks)
        keys[size:], keys[:size] = keys[size:] * 1e-3, keys[:size] * 4
    if kind == "zero":
        query.zero_()
    if kind == "huge":
        query = query * torch.logspace(-12, 12, n, dtype=torch.float64)[:, None]
    return query, keys, values, 0.05 * bias, grad


def compare_with_one_process(cases: list[int]) -> int:
    """How many cases of the grid were compared; on every rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    selection.MAX_SPARSE_DENSITY["cpu"] = 1.0  # one process makes lists as well
    for number in cases:
        kind, m, structure, (alpha, probabilities), gate_scale, dtype = GRID[number]
        query, keys, values, bias, grad = (
            each.to(dtype) for each in inputs(kind, size * N_TOKENS, m, size, number % 97)
        )
        gate = {"gate_scale": gate_scale, "alpha": alpha, "probabilities": probabilities}
        # The shards of a DTensor: the last ones may be smaller, or empty.
        length = -(-m // size)
        low, high = min(rank * length, m), min((rank + 1) * length, m)
        mine = slice(rank * N_TOKENS, (rank + 1) * N_TOKENS)
        weights = torch.cos(torch.arange(m, dtype=dtype))

        def leaves(own: slice, structure=structure, keys=keys, values=values, bias=bias):
            own_keys = keys[own].clone().requires_grad_()
            if structure == "shared":
                return own_keys, own_keys, None
            return own_keys, values[own].clone().requires_grad_(), bias[own].clone().requires_grad_()

        whole, everything = query.clone().requires_grad_(), leaves(slice(0, m))
        one = attend(whole, *everything, **gate)
        ((one.context * grad).sum() + (one.acts.to_dense() @ weights).sum()).backward()

        shard = ConceptShard(dist.group.WORLD, low)
        own, part = query[mine].clone().requires_grad_(), leaves(slice(low, high))
        many = attend(shard.gather(own), *part, **gate, shard=shard)
        context = shard.scatter(many.context)
        ((context * grad[mine]).sum() + (many.acts.to_dense() @ weights[low:high]).sum()).backward()

        row, col = one.acts.indices()
        here = (col >= low) & (col < high)
        where = f"case {number}: {GRID[number]}"
        assert torch.equal(torch.stack([row[here], col[here] - low]), many.acts.indices()), where
        assert torch.equal(one.counts, shard.total(many.counts)), where
        tolerance = 1e-10 if dtype == torch.float64 else 2e-4
        if probabilities and alpha > 2:
            tolerance *= 100  # their gradients are unbounded near the threshold
        close = {"rtol": tolerance, "atol": tolerance}
        pairs = [
            (many.acts.values(), one.acts.values()[here]),
            (context, one.context[mine]),
            (own.grad, whole.grad[mine]),
            (part[0].grad, everything[0].grad[low:high]),
        ]
        if kind != "huge":
            pairs.append((many.tau(), one.tau()))
        if structure == "separate":
            pairs += [(here.grad, all_.grad[low:high]) for here, all_ in zip(part[1:], everything[1:], strict=True)]
        # A gradient of order 1 may be the sum of such that a threshold nearby makes huge, and cancel but for rounding.
        summands = max(float(each.abs().max()) for each in (everything[0].grad, whole.grad))
        for got, expected in pairs:
            scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
            scale = max(scale, summands) if probabilities and alpha > 2 else scale
            torch.testing.assert_close(got / scale, expected / scale, **close, msg=lambda text, w=where: f"{w}: {text}")
    return len(cases)


@pytest.mark.parametrize("size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_part_of_the_grid_equals_one_process(size):
    cases = list(range(size, len(GRID), 97))
    assert on_ranks(size, compare_with_one_process, cases) == [len(cases)] * size


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4] if ALL_MEMBERS else [4])
def test_more_of_the_grid_equals_one_process(size):
    cases = list(range(size, len(GRID), 1 if ALL_MEMBERS else 31))
    assert on_ranks(size, compare_with_one_process, cases) == [len(cases)] * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_in_order_are_neighbours_and_come_back(dtype):
    values = torch.tensor([-torch.inf, -1e30, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3.0, 1e30, torch.inf], dtype=dtype)
    ordered = _ordered(values)
    assert (ordered.diff() >= 0).all() and ordered[4] == ordered[5]
    assert torch.equal(_floats(ordered, dtype), values)
    upwards = torch.nextafter(values[:-1], torch.full_like(values[:-1], torch.inf))
    steps = _ordered(upwards) - ordered[:-1]
    assert set(steps.tolist()) <= {1, 2}  # beside zero, −0 has a place that no number takes


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 63, 64, 65, 1000, 2**31, 2**62])
def test_the_rounds_that_are_counted_close_every_interval(width):
    """Each round leaves at most the stride, whichever of the eight parts holds the answer."""
    low, high = torch.tensor([0]), torch.tensor([width])
    stride_of = lambda low, high: (((high >> 1) - (low >> 1)) >> 2) + 1  # noqa: E731
    for keep_last in (False, True):
        lo, hi = low.clone(), high.clone()
        for _ in range(_rounds(low, high)):
            stride = stride_of(lo, hi)
            lo, hi = (torch.minimum(lo + 7 * stride, hi - 1), hi) if keep_last else (lo, torch.minimum(lo + stride, hi))
        assert int(hi - lo) == 1


def hold_scores_that_are_none() -> str:
    rank = dist.get_rank()
    keys = torch.eye(4)[2 * rank : 2 * rank + 2] * (math.inf if rank else 1.0)
    try:
        attend(torch.ones(4, 4), keys, keys, shard=ConceptShard(dist.group.WORLD, 2 * rank))
    except ValueError as error:
        return str(error)
    return "nothing"


def test_scores_that_are_not_finite_on_one_rank_are_refused_by_all():
    first, second = on_ranks(2, hold_scores_that_are_none)
    assert first == second and "finite" in first
