"""Where each family of vision transformers in `transformers` keeps its parts.

All of them are pre-norm encoders built from the same pieces under different names, so one table is the whole
difference between CLIP and DINOv2. A new family is a new row.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from sae_lens_sparsemax.settings.sentences import must_be_one_of


@dataclass(frozen=True)
class ViTFamily:
    """Attribute names of one family, on the vision model or (the block's parts) on each encoder layer."""

    layers: str
    """Path from the vision model to its list of encoder layers."""
    ln1: str
    ln2: str
    attention: str
    attention_out: str
    """Name of the output projection, on the attention module."""
    ln_final: str
    ln_pre: str | None = None
    """Layer norm between the embeddings and the first block."""
    attention_scale: str | None = None
    """Module applied to the attention's output before it joins the residual stream."""
    mlp_scale: str | None = None
    head: str | None = None
    """Module that turns the normalised tokens into one vector; where there is none, their first is taken, or the mean
    of the patches where nothing precedes them."""
    norm_first_token_only: bool = False
    """The model normalises its pooled token alone and returns the other tokens as they are."""
    n_prefix_tokens: Callable[[Any], int] = lambda _: 1
    """How many tokens of the sequence, given the vision config, come before the patches."""


@dataclass(frozen=True)
class ViTShape:
    """The sizes of a vision transformer, under TransformerLens's names."""

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    n_prefix_tokens: int
    """Tokens before the patches: CLS, and registers if any; 0 for SigLIP."""
    image_size: tuple[int, int]
    """Height and width of the images that it is given, in pixels."""
    patch_size: int
    eps: float

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches; what does not fill a patch at the right and the bottom is not seen."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def n_ctx(self) -> int:
        """Tokens of one image, prefix tokens and patches together."""
        return self.n_prefix_tokens + math.prod(self.grid)

    @classmethod
    def of(cls, config: Any, family: ViTFamily, image_size: tuple[int, int]) -> "ViTShape":
        """The sizes in a `transformers` vision config, for images of a height and width that it need not name."""
        return cls(
            n_layers=config.num_hidden_layers,
            d_model=config.hidden_size,
            n_heads=config.num_attention_heads,
            d_head=config.hidden_size // config.num_attention_heads,
            n_prefix_tokens=family.n_prefix_tokens(config),
            image_size=image_size,
            patch_size=config.patch_size,
            eps=config.layer_norm_eps,
        )


_CLIP = ViTFamily(
    layers="encoder.layers",
    ln1="layer_norm1",
    ln2="layer_norm2",
    attention="self_attn",
    attention_out="out_proj",
    ln_pre="pre_layrnorm",  # spelt so in transformers
    ln_final="post_layernorm",
    norm_first_token_only=True,
)
_SIGLIP = ViTFamily(
    layers="encoder.layers",
    ln1="layer_norm1",
    ln2="layer_norm2",
    attention="self_attn",
    attention_out="out_proj",
    ln_final="post_layernorm",
    head="head",
    n_prefix_tokens=lambda _: 0,
)
_DINOV2 = ViTFamily(
    layers="encoder.layer",
    ln1="norm1",
    ln2="norm2",
    attention="attention",
    attention_out="o_proj",
    ln_final="layernorm",
    attention_scale="layer_scale1",
    mlp_scale="layer_scale2",
    n_prefix_tokens=lambda config: 1 + getattr(config, "num_register_tokens", 0),
)
_VIT = ViTFamily(
    layers="layers",
    ln1="layernorm_before",
    ln2="layernorm_after",
    attention="attention",
    attention_out="o_proj",
    ln_final="layernorm",
    head="pooler",
)

FAMILIES: dict[str, ViTFamily] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "vit": _VIT,
}
"""From `config.model_type` of a `transformers` model to its row."""


def family_of(model_type: str) -> ViTFamily:
    """The row for a `model_type`.

    Raises:
        ValueError: the family is not in the table.
    """
    if model_type not in FAMILIES:
        raise must_be_one_of("the model's type", model_type, FAMILIES)
    return FAMILIES[model_type]


def module_at(root: nn.Module, path: str | None) -> Any:
    """The submodule at a dotted path; None where there is no path, or no module at its end."""
    module: Any = root
    for part in path.split(".") if path else []:
        module = getattr(module, part, None)
    return module if path else None
