"""Several processes that explore together: what one process gathers, to the bit, and the same pages."""

import functools

import numpy as np
import pytest
import torch.distributed as dist

from sae_lens_sparsemax.explore.gather import gather, state_of
from sae_lens_sparsemax.processes.together import gathered, own_part
from tests.support.ranks import on_ranks
from tests.support.streams import RandomStream, inference_sae

SETTINGS = {"n_classes": 3, "d_embedding": 6, "some_left_out": True}


class WithoutSome(RandomStream):
    """Leaves out the first batches, as if none of their images could be used."""

    def batches(self, start, *wanted):
        return ((batch, last) for batch, last in super().batches(start, *wanted) if last > 8)


def gathered_state(stream):
    ranks = {"part": own_part(), "share": gathered} if dist.is_initialized() else {}
    found = gather(inference_sae(), stream(**SETTINGS), n_examples=4, n_showcase=3, **ranks)
    return None if found is None else {name: each.numpy() for name, each in state_of(found).items()}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [RandomStream, WithoutSome])
def test_processes_gather_what_one_gathers(stream):
    whole = gathered_state(stream)
    first, *others = on_ranks(3, functools.partial(gathered_state, stream))
    assert others == [None, None] and first.keys() == whole.keys()
    for name, expected in whole.items():
        np.testing.assert_array_equal(first[name], expected, name)
