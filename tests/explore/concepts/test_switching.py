import math

import pytest
import torch

from sae_lens_sparsemax.explore.concepts.switching import Change, switch_hook
from tests.support.small_sae import dense, small_sae


def test_switching_moves_along_the_decoder_row_by_what_the_activation_changes():
    sae = small_sae(d_in=6, d_sae=12).eval()
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    acts = dense(sae.encode(x))
    concept = int(acts.abs().sum((0, 1)).argmax())
    switched = switch_hook(sae, {concept: Change(0.0), 3: Change(2.0, 0.5)}, slice(1, None))(x, None)
    expected = x - acts[..., [concept]] * sae.W_dec[concept]
    three = acts[..., [3]] if concept != 3 else torch.zeros_like(acts[..., [3]])
    expected = expected + (three + 0.5) * sae.W_dec[3]
    assert torch.allclose(switched[:, 1:], expected[:, 1:], atol=1e-5)
    assert torch.equal(switched[:, 0], x[:, 0])


def test_no_change_changes_nothing():
    sae = small_sae(d_in=6, d_sae=12).eval()
    x = torch.randn(1, 5, 6)
    for changes in ({}, {2: Change()}):
        assert torch.equal(switch_hook(sae, changes, torch.ones(5, dtype=torch.bool))(x, None), x)


def test_impossible_changes_are_refused():
    sae = small_sae(d_in=6, d_sae=12)
    with pytest.raises(ValueError, match="no concept 12; concepts are numbered from 0 to 11"):
        switch_hook(sae, {12: Change(0.0)}, slice(None))
    with pytest.raises(ValueError, match="nan"):
        switch_hook(sae, {1: Change(math.nan)}, slice(None))
