"""Activations as lists of what is not zero: where the L0 of tokens is counted."""

import torch

from sae_lens_sparsemax.models.encoding import sparse_acts


def test_l0_is_the_same_for_every_layout():
    acts = torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    coo = acts.to_sparse()
    places = torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]])
    values = torch.tensor([1.0, -2.0, 0.0, 3.0])
    with_stored_zero = torch.sparse_coo_tensor(places, values, (3, 3), check_invariants=True)
    for layout in (acts, coo, acts.to_sparse_csr(), with_stored_zero):
        assert sparse_acts(layout).l0().tolist() == [2, 0, 1]
