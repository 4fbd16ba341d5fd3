"""The activation stream against the model run by hand, and its continuation from a checkpoint."""

import itertools

import pytest
import torch

from sae_lens_sparsemax.activations.sources import ImageActivations
from sae_lens_sparsemax.activations.store import MixedActivationsStore
from sae_lens_sparsemax.data.image_loader import ImageLoader
from sae_lens_sparsemax.data.images import encoded_images
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook, layers_to_run
from tests.support.tiny_images import gray_levels, plain_processor
from tests.support.tiny_vision_models import tiny_model

HOOK = "blocks.1.hook_resid_post"


def source(model, *, tokens="all", hook_name=HOOK, n_images=10, **kwargs) -> ImageActivations:
    images = ImageLoader(encoded_images(gray_levels(n_images), "image"), plain_processor(), 4, seed=0)
    return ImageActivations(VisionAtHook(model, hook_name, tokens), images, **kwargs)


def store(model, prefetch=0, **kwargs) -> MixedActivationsStore:
    return MixedActivationsStore(source(model, **kwargs), 8, 48, 0.5, prefetch)


@pytest.mark.parametrize(
    ("tokens", "positions"), [("all", slice(0, 5)), ("cls", slice(0, 1)), ("patches", slice(1, 5))]
)
def test_tokens_are_those_of_the_residual_stream(tiny_clip, tokens, positions):
    activations = source(tiny_clip, tokens=tokens)
    batch = next(activations.batches())
    pixels = next(activations.images.batches()).pixel_values
    hidden = tiny_clip.model.vision_model(pixels, output_hidden_states=True).hidden_states[2]
    assert torch.equal(batch.acts, hidden[:, positions].flatten(0, 1))
    assert batch.acts.requires_grad is False
    assert activations.at_hook.n_tokens * 4 == len(batch.acts)


def test_heads_lie_side_by_side(tiny_clip):
    activations = source(tiny_clip, hook_name="blocks.0.attn.hook_z")
    pixels = next(activations.images.batches()).pixel_values
    _, cache = tiny_clip.run_with_cache(pixels, names_filter="blocks.0.attn.hook_z")
    assert torch.equal(activations.activations_of(pixels), cache["z", 0].flatten(2))
    assert activations.at_hook.width == 32


def test_nothing_beyond_the_hooks_block_is_computed(tiny_clip):
    calls = []
    for layer, block in enumerate(tiny_clip.blocks):
        block.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
    next(source(tiny_clip).batches())
    assert calls == [0, 1]
    assert layers_to_run("hook_embed") == 0 and layers_to_run("ln_final.hook_normalized") is None


def test_dtype_is_as_asked_for(tiny_clip):
    assert next(source(tiny_clip, dtype=torch.bfloat16).batches()).acts.dtype == torch.bfloat16


def test_store_serves_each_token_of_a_pass_once(tiny_clip):
    tokens = source(tiny_clip, n_images=16)
    expected = torch.cat([batch.acts for batch in itertools.islice(tokens.batches(), 4)])
    one_pass = MixedActivationsStore(tokens, 8, 80, 0)
    served = torch.cat([next(one_pass) for _ in range(10)])
    assert torch.equal(served, expected)
    assert one_pass.n_inputs == 16


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("stop_after", [0, 1, 7, 20])
def test_a_checkpoint_continues_bit_for_bit(tiny_clip, tmp_path, stop_after, prefetch):
    torch.manual_seed(0)
    whole = store(tiny_clip)
    expected = [next(whole) for _ in range(30)]

    torch.manual_seed(0)
    first = store(tiny_clip, prefetch)
    for _ in range(stop_after):
        next(first)
    first.save_to_checkpoint(tmp_path)
    first.close()

    torch.manual_seed(7)
    second = store(tiny_clip, prefetch)
    second.load_from_checkpoint(tmp_path)
    rest = [next(second) for _ in range(30 - stop_after)]
    second.close()
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[stop_after:], strict=True))
    assert second.n_inputs == whole.n_inputs


def test_the_model_can_be_used_while_the_store_is_paused(tiny_clip, pixels):
    ahead = store(tiny_clip, prefetch=2)
    next(ahead)
    with ahead.paused():
        expected = tiny_clip(pixels)
        for _ in range(20):
            assert torch.equal(tiny_clip(pixels), expected)
    ahead.close()


def test_a_folder_without_a_store_is_refused(tiny_clip, tmp_path):
    with pytest.raises(ValueError, match="no state of a store of mixed activations"):
        store(tiny_clip).load_from_checkpoint(tmp_path)


def test_hooks_without_one_vector_per_token_are_refused(tiny_clip):
    for hook_name in ("blocks.0.attn.hook_pattern", "ln_final.hook_normalized", "hook_image_embeds"):
        with pytest.raises(ValueError, match="one vector per token"):
            _ = VisionAtHook(tiny_clip, hook_name).width


def test_tokens_that_a_model_lacks_are_refused(tiny_clip):
    with pytest.raises(ValueError, match="tokens must be"):
        source(HookedViT(tiny_model("siglip")), tokens="cls")
    with pytest.raises(ValueError, match="must be one of all, cls, patches"):
        source(tiny_clip, tokens="pachtes")
