"""Activations as lists of what is not zero: where the L0 of tokens is counted, and where images are averaged."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.registry import get_sae_class

from sae_lens_sparsemax.models.encoding import encode_images, hook_name_of, mean_over_tokens, sparse_acts


def test_l0_is_the_same_for_every_layout():
    acts = torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    coo = acts.to_sparse()
    places = torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]])
    values = torch.tensor([1.0, -2.0, 0.0, 3.0])
    with_stored_zero = torch.sparse_coo_tensor(places, values, (3, 3), check_invariants=True)
    for layout in (acts, coo, acts.to_sparse_csr(), with_stored_zero):
        assert sparse_acts(layout).l0().tolist() == [2, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_averages_over_an_images_tokens_are_as_precise_as_float32(dtype):
    acts = (200 * torch.rand(2 * 500, 4, generator=torch.Generator().manual_seed(0)) + 400).to(dtype)
    mean = mean_over_tokens(sparse_acts(acts), 500)
    assert mean.value.dtype == torch.promote_types(dtype, torch.float32)
    expected = acts.double().unflatten(0, (2, 500)).mean(1).flatten()
    assert torch.allclose(mean.value.double(), expected, rtol=1e-5)

    sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=8, dtype=str(dtype).removeprefix("torch.")))
    (chunk,) = encode_images(sae, [acts.unflatten(0, (2, 500))])
    with torch.no_grad():
        out = sae(acts).double().unflatten(0, (2, 500)).mean(1)
    assert torch.allclose(chunk.sae_in.double().flatten(), expected, rtol=1e-5)
    assert torch.allclose(chunk.sae_out.double(), out, rtol=1e-5)


@pytest.mark.parametrize("given", [None, "blocks.0.hook_mlp_in"])
@pytest.mark.parametrize(("architecture", "why"), [("transcoder", "a transcoder"), ("temporal", "whole contexts")])
def test_what_does_not_reconstruct_every_token_by_itself_is_refused(architecture, why, given):
    kind, config = get_sae_class(architecture)
    own = {"n_heads": 1, "bottleneck_factor": 2} if architecture == "temporal" else {"d_out": 4}
    sae = kind(config(d_in=4, d_sae=8, apply_b_dec_to_input=False, **own))
    sae.cfg.metadata.hook_name = "blocks.0.hook_mlp_in"
    sae.cfg.metadata.hook_name_out = "blocks.0.hook_mlp_out" if architecture == "transcoder" else None
    with pytest.raises(ValueError, match=why):
        hook_name_of(sae, given)
