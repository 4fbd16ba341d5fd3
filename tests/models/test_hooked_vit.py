"""The hooked model against the `transformers` model it wraps."""

from itertools import pairwise

import PIL.Image
import pytest
import torch
import transformers

from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook, blank_pixels, model_metadata
from tests.support.tiny_vision_models import tiny_model

FAMILIES = [
    "clip",
    "clip_vision_model",
    "siglip",
    "dinov2",
    "dinov2_with_registers",
    "vit",
    "vit_without_pooler",
]


def reference(model, pixels, **kwargs):
    return getattr(model, "vision_model", model)(pixels, **kwargs)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_output_without_hooks_is_the_wrapped_models_bit_for_bit(family, attention, pixels):
    model = tiny_model(family, attention)
    expected = reference(model, pixels)
    hooked = HookedViT(model)
    assert torch.equal(hooked(pixels, return_type="tokens"), expected.last_hidden_state)
    if family in ("clip", "siglip"):
        embeds = model.get_image_features(pixels).pooler_output
    elif family == "vit_without_pooler":
        embeds = expected.last_hidden_state[:, 0]
    else:
        embeds = expected.pooler_output
    assert torch.equal(hooked(pixels), embeds)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ViTForImageClassification", "vit"),
        ("ViTForMaskedImageModeling", "vit"),
        ("Dinov2ForImageClassification", "dinov2"),
        ("Dinov2WithRegistersForImageClassification", "dinov2_with_registers"),
        ("CLIPForImageClassification", "clip"),
        ("CLIPVisionModelWithProjection", "clip_vision_model"),
        ("SiglipForImageClassification", "siglip"),
    ],
)
@torch.no_grad()
def test_models_with_a_head_of_their_own_are_hooked_below_it(name, family, pixels):
    model = getattr(transformers, name)(tiny_model(family).config).eval()
    tower = getattr(model.base_model, "vision_model", model.base_model)
    hooked = HookedViT(model)
    assert torch.equal(hooked(pixels, return_type="tokens"), tower(pixels).last_hidden_state)
    assert hooked(pixels).ndim == 2 and hooked.cfg.n_layers == 3 and not hooked.classifies


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_residual_stream_is_the_hidden_states(family, pixels):
    model = tiny_model(family)
    hidden_states = reference(model, pixels, output_hidden_states=True).hidden_states
    _, cache = HookedViT(model).run_with_cache(pixels, names_filter=lambda name: "hook_resid" in name)
    for layer, (before, after) in enumerate(pairwise(hidden_states[:4])):
        assert torch.equal(cache["resid_pre", layer], before)
        # DINOv2 and ViT report their last hidden state after the final norm.
        if layer < 2:
            assert torch.equal(cache["resid_post", layer], after)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_explicit_attention_is_the_eager_one(family, pixels):
    attentions = reference(tiny_model(family, "eager"), pixels, output_attentions=True).attentions
    hooked = HookedViT(tiny_model(family))
    out, cache = hooked.run_with_cache(pixels)
    for layer in range(3):
        torch.testing.assert_close(cache["pattern", layer], attentions[layer], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out, hooked(pixels), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_hook_has_the_shape_transformer_lens_gives_it(tiny_clip, pixels):
    _, cache = tiny_clip.run_with_cache(pixels)
    batch, pos, d_model, heads = 3, 5, 32, 4
    expected = {
        "hook_embed": (batch, pos, d_model),
        "ln_pre.hook_normalized": (batch, pos, d_model),
        "ln_final.hook_normalized": (batch, d_model),
        "hook_image_embeds": (batch, 24),
    }
    for layer in range(3):
        at = f"blocks.{layer}."
        residual = ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"]
        residual += ["ln1.hook_normalized", "ln2.hook_normalized"]
        expected |= {at + name: (batch, pos, d_model) for name in residual}
        expected |= {at + f"attn.hook_{name}": (batch, pos, heads, d_model // heads) for name in "qkvz"}
        expected |= {at + f"attn.hook_{name}": (batch, heads, pos, pos) for name in ("attn_scores", "pattern")}
        expected |= {at + f"mlp.hook_{name}": (batch, pos, 64) for name in ("pre", "post")}
    assert {name: tuple(value.shape) for name, value in cache.items()} == expected
    assert set(tiny_clip.hook_dict) == set(expected)


@pytest.mark.parametrize("family", ["clip", "dinov2"])
@torch.no_grad()
def test_parts_of_a_block_add_up_to_the_residual_stream(family, pixels):
    _, cache = HookedViT(tiny_model(family)).run_with_cache(pixels)
    assert torch.equal(cache["resid_pre", 1] + cache["attn_out", 1], cache["resid_mid", 1])
    assert torch.equal(cache["resid_mid", 1] + cache["mlp_out", 1], cache["resid_post", 1])


@torch.no_grad()
def test_a_replaced_resid_mid_reaches_the_mlp_and_the_residual_stream(tiny_clip, pixels):
    block = tiny_clip.blocks[2]
    new = torch.randn(3, 5, 32)
    out = tiny_clip.run_with_hooks(
        pixels, return_type="tokens", fwd_hooks=[("blocks.2.hook_resid_mid", lambda x, hook: new)]
    )
    assert torch.equal(out, new + block.mlp(block.ln2(new)))


@torch.no_grad()
def test_a_replaced_pattern_is_used(tiny_clip, pixels):
    uniform = torch.full((3, 4, 5, 5), 0.2)
    _, cache = tiny_clip.run_with_cache(pixels, names_filter="blocks.1.attn.hook_v")
    with tiny_clip.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", lambda x, hook: uniform)]):
        _, patched = tiny_clip.run_with_cache(pixels, names_filter="blocks.1.attn.hook_z")
    mean_v = cache["v", 1].mean(1, keepdim=True).expand(-1, 5, -1, -1)
    torch.testing.assert_close(patched["z", 1], mean_v)


@torch.no_grad()
def test_stop_at_layer_runs_the_blocks_before_it(tiny_clip, pixels):
    _, cache = tiny_clip.run_with_cache(pixels, names_filter=lambda name: "attn.hook" not in name)
    stopped, partial = tiny_clip.run_with_cache(pixels, stop_at_layer=-1, names_filter=["blocks.2.hook_resid_pre"])
    assert torch.equal(stopped, cache["resid_post", 1])
    assert not partial.cache_dict
    assert torch.equal(tiny_clip(pixels, stop_at_layer=2), stopped)
    assert torch.equal(tiny_clip(pixels, stop_at_layer=0), cache["ln_pre.hook_normalized"])


def test_negative_layers_count_from_the_last(tiny_clip):
    assert tiny_clip.resolve_hook_name("blocks.-2.hook_resid_post") == "blocks.1.hook_resid_post"
    assert tiny_clip.resolve_hook_name("blocks.0.attn.hook_z") == "blocks.0.attn.hook_z"


@pytest.mark.parametrize("name", ["blocks.7.hook_resid_post", "blocks.-4.hook_resid_post", "blocks.1", "resid_post"])
def test_unknown_hooks_are_refused_with_near_names(tiny_clip, name):
    with pytest.raises(ValueError, match=r"no hook .*3 layers.*blocks\."):
        tiny_clip.resolve_hook_name(name)


def test_gradients_reach_the_pixels(tiny_clip, pixels):
    pixels = pixels.requires_grad_()
    tiny_clip(pixels).square().sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


@pytest.mark.parametrize("family", ["clip", "siglip"])
@torch.no_grad()
def test_zero_shot_logits_are_the_wrapped_models(family, pixels):
    model = tiny_model(family)
    ids = torch.tensor([[1, 5, 6, 49407 % 50], [1, 7, 8, 9]])
    expected = model(input_ids=ids, pixel_values=pixels)
    hooked = HookedViT(model)
    text = model.get_text_features(ids).pooler_output
    torch.testing.assert_close(hooked.zero_shot_logits(hooked(pixels), text), expected.logits_per_image)


def test_models_without_text_say_so(pixels):
    hooked = HookedViT(tiny_model("dinov2"))
    with pytest.raises(ValueError, match="whole CLIP or SigLIP model"):
        hooked.encode_text(["a cat"])
    with pytest.raises(ValueError, match="whole CLIP or SigLIP model"):
        hooked.zero_shot_logits(torch.ones(1, 32), torch.ones(1, 32))
    with pytest.raises(ValueError, match="no image processor"):
        hooked.preprocess([])


def test_other_families_are_refused():
    with pytest.raises(ValueError, match="the model's type must be one of clip, .* got 'bert'"):
        HookedViT(transformers.BertModel(transformers.BertConfig(hidden_size=8, num_attention_heads=2)))


def test_gated_mlps_are_refused():
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=16, use_swiglu_ffn=True
    )
    with pytest.raises(ValueError, match="gated MLPs"):
        HookedViT(transformers.Dinov2Model(config))


def test_code_from_a_repository_is_refused():
    with pytest.raises(ValueError, match="trust_remote_code"):
        HookedViT.from_pretrained("anything", trust_remote_code=True)


@torch.no_grad()
def test_saved_models_load_with_their_processor(pixels, tmp_path, monkeypatch):
    model = tiny_model("vit")
    model.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    hooked = HookedViT.from_pretrained(f"~/{tmp_path.name}")
    assert torch.equal(hooked(pixels, return_type="tokens"), model(pixels).last_hidden_state)
    # The pooler of a checkpoint may be random, so it is left out.
    assert hooked.model.pooler is None
    assert hooked.preprocess([PIL.Image.new("L", (1, 1)), PIL.Image.new("RGBA", (40, 9))]).shape == (
        2,
        3,
        16,
        16,
    )


def test_a_clip_without_tokenizer_files_has_no_tokenizer(tmp_path):
    tiny_model("clip").save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer None"):
        HookedViT.from_pretrained(str(tmp_path)).encode_text(["a cat"])


@torch.no_grad()
def test_mini_clip_classifies_as_the_wrapped_model(mini_clip, shared_data):
    from datasets import load_dataset

    data = load_dataset("parquet", data_files=str(shared_data / "images" / "cifar10_test.parquet"), split="train[:300]")
    pixel_values = mini_clip.preprocess(data["image"][:])
    texts = [f"a photo of a {name}" for name in data.features["label"].names]
    tokens = mini_clip.tokenizer(texts, padding=True, return_tensors="pt")
    expected = mini_clip.model(**tokens, pixel_values=pixel_values)
    embeds = mini_clip(pixel_values)
    assert torch.equal(embeds, mini_clip.model.get_image_features(pixel_values).pooler_output)
    logits = mini_clip.zero_shot_logits(embeds, mini_clip.encode_text(texts))
    torch.testing.assert_close(logits, expected.logits_per_image)
    accuracy = (logits.argmax(-1) == torch.tensor(data["label"][:])).float().mean()
    assert 0.6 < accuracy < 0.75


@torch.no_grad()
def test_patches_without_a_head_are_read_by_their_mean_as_classifiers_do(pixels):
    config = tiny_model("siglip").config
    config.vision_config.vision_use_head = False
    model = transformers.SiglipForImageClassification(config).eval()
    model.classifier = torch.nn.Linear(32, 5)
    torch.testing.assert_close(model.classifier(HookedViT(model)(pixels)), model(pixels).logits)


@pytest.mark.parametrize("has_processor", [True, False])
@torch.no_grad()
def test_images_may_be_configured_with_another_width_than_height(has_processor):
    config = tiny_model("vit").config
    config.image_size = [16, 24]
    model = transformers.AutoModel.from_config(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 24}) if has_processor else None
    hooked = HookedViT(model, processor)
    assert hooked.cfg.image_size == (16, 24) and hooked.cfg.grid == (2, 3)
    assert torch.equal(hooked(blank_pixels(hooked)), model(blank_pixels(hooked)).pooler_output)


@pytest.mark.parametrize("tokens", ["all", "cls", "patches"])
@pytest.mark.parametrize(
    ("made_to", "grid"),
    [
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, (4, 4)),
        ({"size": {"shortest_edge": 28}, "crop_size": {"height": 20, "width": 28}}, (2, 3)),
        ({"size": {"height": 8, "width": 24}, "do_center_crop": False}, (1, 3)),
        (None, (2, 2)),
    ],
)
@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers"])
def test_an_images_tokens_are_those_of_what_the_processor_makes_of_it(family, made_to, grid, tokens):
    """The published DINOv2 are configured for images of 518 pixels, and given 224."""
    hooked = HookedViT(tiny_model(family), made_to and transformers.BitImageProcessor(**made_to))
    pixels = hooked.preprocess(PIL.Image.new("RGB", (64, 48))) if made_to else torch.zeros(1, 3, 16, 16)
    assert blank_pixels(hooked).shape == pixels.shape and hooked.cfg.grid == grid
    at_hook = VisionAtHook(hooked, "blocks.1.hook_resid_post", tokens)
    assert at_hook.activations(pixels).shape == (1, at_hook.n_tokens, at_hook.width)
    n_prefix = hooked.cfg.n_prefix_tokens
    assert hooked.cfg.n_ctx == n_prefix + grid[0] * grid[1] == len(hooked(pixels, return_type="tokens")[0])
    if made_to:
        assert model_metadata(hooked)["context_size"] == hooked.cfg.n_ctx
