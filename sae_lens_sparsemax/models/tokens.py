"""Which tokens of an image an SAE sees, and where in the model it sees them."""

import math
import re
from typing import Literal, get_args

import torch

from sae_lens_sparsemax.models.hooked_vit import HookedViT

Tokens = Literal["all", "cls", "patches"]
"""All tokens of an image, its first one alone, or its patches alone."""


def token_slice(tokens: Tokens, model: HookedViT) -> slice:
    """The positions that `tokens` names in the sequences of a model.

    Raises:
        ValueError: another word, or `"cls"` for a model without such a token (SigLIP).
    """
    n_prefix = model.cfg.n_prefix_tokens
    if tokens not in get_args(Tokens):
        raise ValueError(f"tokens is {tokens!r}; it must be one of {', '.join(get_args(Tokens))}.")
    if tokens == "cls" and n_prefix == 0:
        raise ValueError("tokens is 'cls', but this model has no such token; use 'all' or 'patches'.")
    return {"all": slice(None), "cls": slice(0, 1), "patches": slice(n_prefix, None)}[tokens]


def n_tokens_per_image(tokens: Tokens, model: HookedViT) -> int:
    """How many tokens of each image are used."""
    return len(range(model.cfg.n_ctx)[token_slice(tokens, model)])


def layers_to_run(hook_name: str) -> int | None:
    """The `stop_at_layer` that reaches a hook and computes nothing after its block; None runs the whole
    model."""
    if hook_name.startswith(("hook_embed", "ln_pre")):
        return 0
    layer = re.match(r"blocks\.(\d+)\.", hook_name)
    # The residual stream before a block is there before the block has run, but its hook point is in the
    # block.
    return int(layer.group(1)) + 1 if layer else None


@torch.no_grad()
def read_hook(model: HookedViT, hook_name: str, pixel_values: torch.Tensor) -> torch.Tensor:
    """What a hook sees of preprocessed images, all tokens; nothing after its block is computed.

    Args:
        model: the vision model.
        hook_name: full name of the hook.
        pixel_values: `(batch, 3, height, width)`.

    Returns:
        `(batch, token, ...)`.
    """
    _, cache = model.run_with_cache(
        pixel_values,
        names_filter=hook_name,
        stop_at_layer=layers_to_run(hook_name),
        return_type=None,
        return_cache_object=False,
    )
    return cache[hook_name]


@torch.no_grad()
def hook_width(hook_name: str, model: HookedViT) -> int:
    """`d_in` of an SAE on this hook: the width of one token, heads side by side.

    Raises:
        ValueError: what the hook sees is not one vector per token.
    """
    blank = torch.zeros(1, 3, model.cfg.image_size, model.cfg.image_size)
    shape = tuple(read_hook(model, hook_name, blank).shape[1:])
    if hook_name.endswith(("hook_attn_scores", "hook_pattern")) or shape[0] != model.cfg.n_ctx or len(shape) < 2:
        raise ValueError(
            f"An SAE needs one vector per token; {hook_name!r} sees {shape} for each image. "
            "Choose a hook such as blocks.0.hook_resid_post."
        )
    return math.prod(shape[1:])
