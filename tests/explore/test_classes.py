import math

import torch

from sae_lens_sparsemax.explore.classes import ClassProfile
from sae_lens_sparsemax.explore.examples import SampleActs
from tests.support.streams import sparse


def profile(acts: torch.Tensor, labels: list[int], n_classes: int) -> ClassProfile:
    classes = ClassProfile(n_classes, acts.shape[-1])
    for part, label in zip(acts.split(2), torch.tensor(labels).split(2), strict=True):
        classes.add(SampleActs(sparse(part), acts.shape[1], "mean"), label)
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
