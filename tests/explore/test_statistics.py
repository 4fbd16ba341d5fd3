"""Histograms whose range is not known beforehand, and classes of images by concept."""

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_sparsemax.explore.samples import SampleActs
from sae_lens_sparsemax.explore.statistics import N_BINS, ActivationHistograms, ClassProfile
from tests.support.streams import sparse


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


def profile(acts: torch.Tensor, labels: list[int], n_classes: int) -> ClassProfile:
    classes = ClassProfile(n_classes, acts.shape[-1])
    for part, label in zip(acts.split(2), torch.tensor(labels).split(2), strict=True):
        classes.add(SampleActs(sparse(part), acts.shape[1]), label)
    return classes


def test_shares_and_counts_by_hand():
    acts = torch.zeros(4, 2, 3)
    acts[0, :, 0] = torch.tensor([1.0, 3.0])  # mean 2, class 0
    acts[1, 0, 0] = 4.0  # mean 2, class 1
    acts[2, 1, 0] = 8.0  # mean 4, class 1
    acts[:, 0, 1] = 1.0
    classes = profile(acts, [0, 1, 1, 2], 3)
    assert classes.n_images.tolist() == [1, 2, 1]
    assert classes.active[:, 0].tolist() == [1, 2, 0] and classes.active[:, 1].tolist() == [1, 2, 1]
    torch.testing.assert_close(classes.share(0), torch.tensor([0.25, 0.75, 0.0], dtype=torch.float64))
    entropy = classes.entropy()
    assert math.isclose(entropy[0].item(), 0.25 * 2 + 0.75 * math.log2(4 / 3), rel_tol=1e-6)
    assert math.isclose(entropy[1].item(), 1.5, rel_tol=1e-6)
    assert math.isnan(entropy[2].item())


def test_a_concept_of_one_class_has_no_entropy_and_one_of_all_classes_the_most():
    acts = torch.zeros(8, 1, 2)
    acts[3, 0, 0] = 1.0
    acts[:, 0, 1] = 2.0
    entropy = profile(acts, list(range(8)), 8).entropy()
    assert entropy[0] == 0 and math.isclose(entropy[1].item(), 3.0, rel_tol=1e-6)
