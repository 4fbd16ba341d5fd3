import math

import pytest
import torch

from sae_lens_sparsemax.models.splice import Change, change_concepts, edit_hook, reconstruct
from tests.support.small_sae import dense, small_sae


def test_switching_moves_along_the_decoder_row_by_what_the_activation_changes():
    sae = small_sae(d_in=6, d_sae=12).eval()
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    acts = dense(sae.encode(x))
    concept = int(acts.abs().sum((0, 1)).argmax())
    switched = edit_hook(change_concepts(sae, {concept: Change(0.0), 3: Change(2.0, 0.5)}), slice(1, None))(x, None)
    expected = x - acts[..., [concept]] * sae.W_dec[concept]
    three = acts[..., [3]] if concept != 3 else torch.zeros_like(acts[..., [3]])
    expected = expected + (three + 0.5) * sae.W_dec[3]
    assert torch.allclose(switched[:, 1:], expected[:, 1:], atol=1e-5)
    assert torch.equal(switched[:, 0], x[:, 0])


def test_no_change_changes_nothing():
    sae = small_sae(d_in=6, d_sae=12).eval()
    x = torch.randn(1, 5, 6)
    for changes in ({}, {2: Change()}):
        edit = change_concepts(sae, changes)
        assert torch.equal(edit_hook(edit, torch.ones(5, dtype=torch.bool))(x, None), x)


def test_impossible_changes_are_refused():
    sae = small_sae(d_in=6, d_sae=12)
    with pytest.raises(ValueError, match="concept must be between 0 and 11, got 12"):
        change_concepts(sae, {12: Change(0.0)})
    with pytest.raises(ValueError, match="nan"):
        change_concepts(sae, {1: Change(math.nan)})


def test_an_edit_reaches_only_the_positions_that_the_sae_reads_heads_side_by_side():
    sae = small_sae(d_in=6, d_sae=12).eval()
    heads = torch.randn(2, 5, 3, 2, generator=torch.Generator().manual_seed(1))
    heads[0, 3] *= 100
    mask = torch.tensor([[True, False, True, True, True], [False, True, True, True, False]])
    out = edit_hook(reconstruct(sae), mask, max_norm=50.0)(heads, hook=None)
    expected = sae(heads.flatten(2)).reshape(heads.shape)
    replaced = mask.clone()
    replaced[0, 3] = False
    assert torch.allclose(out[replaced], expected[replaced], atol=1e-5)
    assert torch.equal(out[~replaced], heads[~replaced])
    zeroed = edit_hook(torch.zeros_like, slice(1, 3))(heads, hook=None)
    assert not zeroed[:, 1:3].any() and torch.equal(zeroed[:, [0, 3, 4]], heads[:, [0, 3, 4]])
