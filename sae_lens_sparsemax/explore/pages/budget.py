"""How many examples of each concept fit into a folder of a given size."""

from typing import NamedTuple

import torch

from sae_lens_sparsemax.explore.examples import TopExamples

# Measured on pages of 1,000 to 49,152 concepts: what a concept takes without its examples, and what an example
# takes besides its active tokens, at two characters each.
_BYTES_PER_CONCEPT = 900
_BYTES_PER_EXAMPLE = 30
_BYTES_PER_TOKEN = 2


class Fit(NamedTuple):
    """What is shown of each concept."""

    n_examples: int
    """Examples of each concept."""
    samples: torch.Tensor
    """All samples among them, growing, int64."""


def fit_examples(examples: TopExamples, bytes_per_sample: int, n_bytes: int, always: torch.Tensor) -> Fit:
    """
    The largest number of examples of each concept, at least one, whose pages and samples fit into `n_bytes`.

    Args:
        examples: Of all concepts.
        bytes_per_sample: What an image or a context takes.
        n_bytes: What there is.
        always: Samples that are shown in any case.
    """
    used = examples.sample >= 0
    n_active_tokens = (examples.levels != 0).sum(-1)
    for k in range(examples.sample.shape[1], 0, -1):
        mine = used[:, :k]
        samples = torch.cat([examples.sample[:, :k][mine], always]).unique()
        size = len(samples) * bytes_per_sample + len(used) * _BYTES_PER_CONCEPT
        size += int(mine.sum()) * _BYTES_PER_EXAMPLE + int(n_active_tokens[:, :k].sum()) * _BYTES_PER_TOKEN
        if size <= n_bytes or k == 1:
            return Fit(k, samples)
    raise AssertionError("there is at least one example")
