"""SAEs spliced into a hooked vision model."""

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig


@pytest.fixture
def sae():
    torch.manual_seed(0)
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=64, k=4))
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    with torch.no_grad():
        sae.W_enc.normal_()
        sae.W_dec.normal_()
    return sae


@torch.no_grad()
def test_reconstruction_replaces_the_activation(tiny_clip, sae, pixels):
    spliced = tiny_clip.run_with_saes(pixels, saes=[sae])
    by_hand = tiny_clip.run_with_hooks(pixels, fwd_hooks=[(sae.cfg.metadata.hook_name, lambda x, hook: sae(x))])
    assert torch.equal(spliced, by_hand)
    assert not torch.allclose(spliced, tiny_clip(pixels), atol=0.1)
    assert not tiny_clip.acts_to_saes


@torch.no_grad()
def test_error_term_gives_the_output_back(tiny_clip, sae, pixels):
    torch.testing.assert_close(
        tiny_clip.run_with_saes(pixels, saes=[sae], use_error_term=True),
        tiny_clip(pixels),
        atol=1e-5,
        rtol=1e-4,
    )


@torch.no_grad()
def test_cache_holds_the_features(tiny_clip, sae, pixels):
    _, plain = tiny_clip.run_with_cache(pixels)
    _, cache = tiny_clip.run_with_cache_with_saes(pixels, saes=[sae])
    acts = cache["blocks.1.hook_resid_post.hook_sae_acts_post"]
    assert acts.shape == (3, 5, 64)
    torch.testing.assert_close(acts, sae.encode(plain["resid_post", 1]))


@torch.no_grad()
def test_attached_until_reset_and_restored_after_a_nested_use(tiny_clip, sae, pixels):
    plain = tiny_clip(pixels)
    tiny_clip.add_sae(sae)
    attached = tiny_clip(pixels)
    with tiny_clip.saes(saes=[sae], use_error_term=True):
        torch.testing.assert_close(tiny_clip(pixels), plain, atol=1e-5, rtol=1e-4)
    assert torch.equal(tiny_clip(pixels), attached)
    tiny_clip.reset_saes()
    assert torch.equal(tiny_clip(pixels), plain)


@torch.no_grad()
def test_features_can_be_changed_by_hooks(tiny_clip, sae, pixels):
    out = tiny_clip.run_with_hooks_with_saes(
        pixels,
        saes=[sae],
        fwd_hooks=[("blocks.1.hook_resid_post.hook_sae_acts_post", lambda acts, hook: torch.zeros_like(acts))],
    )
    bias = sae.b_dec.expand(3, 5, 32)
    by_hand = tiny_clip.run_with_hooks(pixels, fwd_hooks=[(sae.cfg.metadata.hook_name, lambda x, hook: bias)])
    torch.testing.assert_close(out, by_hand)


@pytest.mark.parametrize(
    ("hook_name", "message"),
    [
        ("blocks.9.hook_resid_post", "no hook 'blocks.9"),
        ("blocks.-2.hook_resid_post", "'blocks.1.hook_resid_post' before"),
        (None, "no hook_name"),
    ],
)
def test_an_sae_that_does_not_fit_is_refused(tiny_clip, sae, hook_name, message):
    sae.cfg.metadata.hook_name = hook_name
    with pytest.raises(ValueError, match=message):
        tiny_clip.add_sae(sae)
    assert not tiny_clip.acts_to_saes


def test_excluding_text_tokens_is_refused(tiny_clip, sae, pixels):
    with pytest.raises(ValueError, match="exclude_special_tokens"):
        tiny_clip.run_with_saes(pixels, saes=[sae], exclude_special_tokens=True)
