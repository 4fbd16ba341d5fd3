"""Randomly initialised vision models of every family, a few kilobytes each."""

import torch
import transformers

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
}
_TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 50,
}


def tiny_model(family: str, attention: str = "sdpa"):
    """A randomly initialised `transformers` model; its layer norms and scales are random too."""
    torch.manual_seed(0)
    make = {
        "clip": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=_SIZES, text_config=_TEXT, projection_dim=24)
        ),
        "clip_vision_model": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_SIZES)),
        "siglip": lambda: transformers.SiglipModel(
            transformers.SiglipConfig(vision_config=_SIZES, text_config=_TEXT | {"projection_size": 32})
        ),
        "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**_SIZES, drop_path_rate=0.1)),
        "dinov2_with_registers": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**_SIZES)
        ),
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(**_SIZES)),
        "vit_without_pooler": lambda: transformers.ViTModel(transformers.ViTConfig(**_SIZES), add_pooling_layer=False),
    }
    model = make[family]()
    model.set_attn_implementation(attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "scale" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()
