import math

import pytest
import torch
from sae_lens.registry import get_sae_training_class

from sae_lens_sparsemax.models.splice import Change, MaskedReconstruction, change_concepts, edit_hook, reconstruct
from tests.support.small_sae import dense, small_sae

_OWN = {"topk": {"k": 3}, "standard": {}}


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_half_precision_are_compared_in_full(dtype):
    x = torch.randn(1, 400, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    norms = x.float().norm(dim=-1)
    limit = norms.median().item() + 1e-4
    edited = edit_hook(torch.zeros_like, torch.ones(400, dtype=torch.bool), max_norm=limit)(x)
    assert torch.equal((edited == 0).all(-1), norms <= limit)


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


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_a_normalisation_of_each_token_goes_with_its_activations(architecture, normalisation):
    sae_class, cfg_class = get_sae_training_class(architecture)  # a TopK in training gives sparse tensors
    sae = sae_class(cfg_class(d_in=6, d_sae=12, normalize_activations=normalisation, **_OWN[architecture])).eval()
    sae.b_dec.data.normal_()
    images = [3 * torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(seed)) + 1 for seed in (0, 1)]

    def decoded(x, change):
        """SAELens's own encode and decode, with the activations changed between."""
        acts = dense(sae.encode(x.flatten(0, 1)))
        return sae.decode(change(acts)).reshape(x.shape)

    keep = torch.rand(4, 12) > 0.5
    masked = MaskedReconstruction(sae, chunk_size=10)  # two images a chunk
    for x in (*images, images[0]):
        for _ in range(2):
            assert torch.allclose(masked.edit(None)(x), decoded(x, lambda acts: acts), atol=1e-5)
            expected = decoded(x, lambda acts: acts * keep.repeat_interleave(5, 0))
            assert torch.allclose(masked.edit(keep)(x), expected, atol=1e-5)

        def off(acts):
            return acts * (torch.arange(12) != 2)

        expected = x + decoded(x, off) - decoded(x, lambda acts: acts)
        assert torch.allclose(change_concepts(sae, {2: Change(0.0)})(x), expected, atol=1e-5)
