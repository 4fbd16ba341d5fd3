import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_sparsemax.explore.histograms import N_BINS, ActivationHistograms


def of(values: list[float], batches: int = 1) -> ActivationHistograms:
    histograms = ActivationHistograms(2)
    for part in torch.tensor(values).tensor_split(batches):
        histograms.add(torch.ones(len(part), dtype=torch.int64), part)
    return histograms


ACTIVATIONS = st.lists(
    st.floats(-1e6, 1e6, width=32, allow_nan=False).filter(lambda x: abs(x) > 1e-6), min_size=1, max_size=60
)


@given(ACTIVATIONS)
@settings(max_examples=60, deadline=None)
def test_each_bin_counts_the_activations_between_its_edges(values):
    low, width, counts = of(values).trimmed(1)
    exact = torch.tensor(values).double()
    edges = low + width * torch.arange(len(counts) + 1).double()
    expected = [int(((exact >= a) & (exact < b)).sum()) for a, b in itertools.pairwise(edges)]
    assert counts == expected and sum(counts) == len(values)
    assert len(counts) <= N_BINS and counts[0] > 0 and counts[-1] > 0


@given(ACTIVATIONS, st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_neither_batches_nor_order_matter(values, batches, random):
    shuffled = random.sample(values, len(values))
    assert of(values).trimmed(1) == of(shuffled, batches).trimmed(1)


def test_the_largest_activation_lies_in_at_least_a_quarter_of_the_bins():
    low, width, counts = of([0.001, 1.0]).trimmed(1)
    assert len(counts) >= N_BINS // 4 and low == 0 and low + width * len(counts) > 1


def test_a_concept_that_never_fired_has_no_bins():
    assert of([1.0]).trimmed(0) == (0.0, 0.0, [])
