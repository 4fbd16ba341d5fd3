"""A vision model at the hook of an SAE: which tokens of an image the SAE sees, what it sees, and what if it changes.

The counterpart for language models is `models.at_hook`.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, get_args

import torch
from sae_lens import SAE

from sae_lens_sparsemax import __version__
from sae_lens_sparsemax.models.encoding import hook_name_of
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.language_models import check_hook_width
from sae_lens_sparsemax.models.splice import Edit, edit_hook
from sae_lens_sparsemax.settings.sentences import must_be, must_be_one_of

VISION_MODEL_CLASS = "HookedViT"
"""The class that the metadata of an SAE on a vision model name."""

Tokens = Literal["all", "cls", "patches"]
"""All tokens of an image, its first one alone, or its patches alone."""


def reads_images(sae: SAE[Any]) -> bool:
    """Whether the metadata of an SAE name a vision model."""
    return sae.cfg.metadata.model_class_name == VISION_MODEL_CLASS


class VisionAtHook:
    """A vision model where an SAE reads it.

    Args:
        model: the model.
        hook_name: where the SAE reads; negative layers count from the last.
        tokens: which tokens of an image it reads.

    Raises:
        ValueError: the model has no such hook or no such tokens (SigLIP has no CLS).
    """

    def __init__(self, model: HookedViT, hook_name: str, tokens: Tokens = "all") -> None:
        self.model = model
        self.tokens: Tokens = tokens
        self.hook_name = model.resolve_hook_name(hook_name)
        n_prefix = model.cfg.n_prefix_tokens
        if tokens not in get_args(Tokens):
            raise must_be_one_of("tokens", tokens, get_args(Tokens))
        if tokens == "cls" and n_prefix == 0:
            raise must_be("tokens", "'all' or 'patches', as this model has no class token", tokens)
        self.positions = {"all": slice(None), "cls": slice(0, 1), "patches": slice(n_prefix, None)}[tokens]
        self._layer = _layer_before(self.hook_name)
        # Pixels, the residual stream they come to, and what the SAE reads of it.
        self._seen: tuple[torch.Tensor, int, torch.Tensor, torch.Tensor] | None = None

    @property
    def n_tokens(self) -> int:
        """How many tokens of each image are used."""
        return len(range(self.model.cfg.n_ctx)[self.positions])

    @property
    def width(self) -> int:
        """`d_in` of an SAE here: the width of one token, heads side by side.

        Raises:
            ValueError: what the hook sees is not one vector per token.
        """
        shape = tuple(self._all_tokens(blank_pixels(self.model)).shape[1:])
        no_vectors = self.hook_name.endswith(("hook_attn_scores", "hook_pattern"))
        if no_vectors or shape[0] != self.model.cfg.n_ctx or len(shape) < 2:
            raise ValueError(
                f"An SAE needs one vector per token; {self.hook_name!r} sees {shape} for each image. "
                "Choose a hook such as blocks.0.hook_resid_post."
            )
        return math.prod(shape[1:])

    @torch.no_grad()
    def _all_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the hook sees of preprocessed images, `(images, all tokens, ...)`."""
        _, cache = self.model.run_with_cache(
            pixel_values,
            names_filter=self.hook_name,
            stop_at_layer=layers_to_run(self.hook_name),
            return_type=None,
            return_cache_object=False,
        )
        return cache[self.hook_name]

    def activations(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the SAE reads, `(images, tokens, d_in)`, heads side by side; nothing behind the hook is computed."""
        return self._all_tokens(pixel_values)[:, self.positions].flatten(2)

    @torch.no_grad()
    def activations_and_embeddings(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the SAE reads, as `activations`, and the image embeddings, `(images, d_embed)`, in one pass."""
        embeds, cache = self.model.run_with_cache(pixel_values, names_filter=self.hook_name, return_cache_object=False)
        return cache[self.hook_name][:, self.positions].flatten(2), embeds

    @torch.no_grad()
    def embeddings(self, pixel_values: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
        """Image embeddings, `(images, d_embed)`, with what the SAE reads edited.

        At the residual stream after a block, several edits of the same pixels in a row share the blocks before it.
        """
        if edit is None:
            return self.model.run_with_hooks(pixel_values)
        if self._layer is None:
            hook = edit_hook(edit, self.positions)
            return self.model.run_with_hooks(pixel_values, fwd_hooks=[(self.hook_name, hook)])
        # A caller may have changed the pixels in place.
        if self._seen is None or self._seen[0] is not pixel_values or self._seen[1] != pixel_values._version:
            resid = self.model(pixel_values, stop_at_layer=self._layer)
            assert resid is not None
            # One tensor for every edit, so that an edit can know it again.
            self._seen = (pixel_values, pixel_values._version, resid, resid[:, self.positions])
        _, _, resid, read = self._seen
        changed = resid.clone()
        changed[:, self.positions] = edit(read).to(changed)
        embeds = self.model(changed, start_at_layer=self._layer)
        assert embeds is not None
        return embeds


def open_vision(
    sae: SAE[Any],
    model_name: str | None = None,
    *,
    hook_name: str | None = None,
    tokens: Tokens | None = None,
    device: str = "cpu",
) -> VisionAtHook:
    """The model that an SAE was trained on, at its hook.

    Args:
        sae: any SAELens SAE.
        model_name: replaces the model in the SAE's metadata.
        hook_name, tokens: replace what the metadata say.
        device: where the model runs.

    Raises:
        ValueError: the metadata lack something that is not given, the SAE is of no kind that is inspected, the model
            cannot be loaded or has no such hook, or its width there is not the SAE's.
    """
    meta = sae.cfg.metadata
    name = model_name or meta.model_name
    if not name:
        raise ValueError("The SAE's metadata have no 'model_name'; give --model_name.")
    hook_name = hook_name_of(sae, hook_name)
    # What was given to another model's loader says nothing about this one.
    kwargs = meta.model_from_pretrained_kwargs if name == meta.model_name else None
    model = HookedViT.from_pretrained(name, device, **(kwargs or {}))
    at_hook = VisionAtHook(model, hook_name, tokens or meta.tokens or "all")
    check_hook_width(sae.cfg.d_in, at_hook.width, at_hook.hook_name)
    return at_hook


def model_metadata(model: HookedViT) -> dict[str, Any]:
    """What the model gives to the metadata of an SAE on it: tokens of an image, preprocessing, version."""
    return {
        "context_size": model.cfg.n_ctx,
        "n_prefix_tokens": model.cfg.n_prefix_tokens,
        "image_processor": model.image_processor.to_dict(),
        "sae_lens_sparsemax_version": __version__,
    }


def layers_to_run(hook_name: str) -> int | None:
    """The `stop_at_layer` that reaches a hook and computes nothing after its block; None runs the whole
    model."""
    if hook_name.startswith(("hook_embed", "ln_pre")):
        return 0
    layer = re.match(r"blocks\.(\d+)\.", hook_name)
    # The residual stream before a block is there before the block has run, but its hook point is in the
    # block.
    return int(layer.group(1)) + 1 if layer else None


def blank_pixels(model: HookedViT) -> torch.Tensor:
    """An image to find out widths with, `(1, 3, height, width)`."""
    return torch.zeros(1, 3, *model.cfg.image_size)


def _layer_before(hook_name: str) -> int | None:
    """The `start_at_layer` that goes on behind a hook at the residual stream after a block; None for other hooks."""
    after = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", hook_name)
    return int(after.group(1)) + 1 if after else None
