"""An image model at the hook of an SAE: activations, edits, text prototypes, and independent encoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_sparsemax.data.labelled_images import LabelledImages
from sae_lens_sparsemax.models.image_edits import Edit, EmbedImages
from sae_lens_sparsemax.models.language_models import check_width
from sae_lens_sparsemax.models.loading import load_vision_model
from sae_lens_sparsemax.models.tokens import Tokens, hook_width, read_hook, token_slice

PIXELS = "pixels"
"""Names the encoder that needs no model: the image's own pixels, at most 32 × 32, with their mean removed."""

_PIXELS_SIDE = 32


class VisionModel:
    """
    A vision transformer at the hook of an SAE.

    Args:
        sae: Any SAELens SAE.
        model_name: Hub id or folder of a CLIP, SigLIP, DINOv2 or ViT model.
        hook_name: Where the SAE reads; negative layers count from the last.
        tokens: Which tokens of an image the SAE reads.
        device: Where the model runs.

    Raises:
        ValueError: The model cannot be hooked, has no such hook, or another width there than the SAE.
    """

    def __init__(self, sae: SAE[Any], model_name: str, hook_name: str, tokens: Tokens, device: str) -> None:
        self.model = load_vision_model(model_name, device)
        self.hook_name = self.model.resolve_hook_name(hook_name)
        check_width(sae.cfg.d_in, hook_width(self.hook_name, self.model), self.hook_name)
        self.positions = token_slice(tokens, self.model)

    @torch.no_grad()
    def activations(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the SAE reads, shape (images, tokens, d_in), heads side by side."""
        return read_hook(self.model, self.hook_name, pixels)[:, self.positions].flatten(2)

    @torch.no_grad()
    def activations_and_embeddings(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the SAE reads, as `activations`, and the image embeddings, shape (images, d_embedding), in one pass."""
        embeddings, cache = self.model.run_with_cache(pixels, names_filter=self.hook_name, return_cache_object=False)
        return cache[self.hook_name][:, self.positions].flatten(2), embeddings

    def activation_batches(self, images: LabelledImages, description: str | None = None) -> Iterator[torch.Tensor]:
        """Activations of all images, batch by batch."""
        for pixels in images.pixels(description):
            yield self.activations(pixels)

    def embed(self) -> EmbedImages:
        """
        The model as what zero-shot classification needs: image embeddings, with the SAE's tokens edited.

        At the residual stream after a block, several edits of the same pixels in a row share the blocks before it.
        """
        after = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", self.hook_name)
        if after is None:
            return self._embed_through_hook
        layer = int(after.group(1)) + 1
        seen: list[torch.Tensor] = []  # pixels, residual stream, and what the SAE reads of it
        version = -1  # of the pixels, which a caller may have changed in place

        def embed(pixel_values: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
            nonlocal version
            with torch.no_grad():
                if edit is None:
                    return self.model(pixel_values)
                if not seen or seen[0] is not pixel_values or version != pixel_values._version:
                    version = pixel_values._version
                    resid = self.model(pixel_values, stop_at_layer=layer)
                    seen[:] = [pixel_values, resid, resid[:, self.positions]]
                changed = seen[1].clone()
                changed[:, self.positions] = edit(seen[2]).to(changed)
                return self.model(changed, start_at_layer=layer)

        return embed

    def _embed_through_hook(self, pixel_values: torch.Tensor, edit: Edit | None = None) -> torch.Tensor:
        def replace(acts: torch.Tensor, hook: Any) -> torch.Tensor:  # noqa: ARG001 (TransformerLens's name)
            assert edit is not None
            read = acts[:, self.positions]
            changed = acts.clone()
            changed[:, self.positions] = edit(read.flatten(2)).reshape(read.shape).to(acts)
            return changed

        hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [(self.hook_name, replace)]
        with torch.no_grad():
            return self.model.run_with_hooks(pixel_values, fwd_hooks=hooks if edit is not None else [])


def encoder_embeddings(encoder: str, images: LabelledImages, device: str) -> Iterator[torch.Tensor]:
    """
    Embeddings of images by an encoder other than the SAE's model, batch by batch, shape (images, d_embedding).

    Args:
        encoder: Hub id or folder of a vision model, or `PIXELS`.
        images: Prepared for any model; they are prepared again for the encoder.
        device: Where the encoder runs.
    """
    if encoder == PIXELS:
        for pixels in images.pixels():
            small = torch.nn.functional.adaptive_avg_pool2d(pixels.double(), min(_PIXELS_SIDE, pixels.shape[-1]))
            flat = small.flatten(1)
            yield flat - flat.mean(1, keepdim=True)
        return
    model = load_vision_model(encoder, device)
    for pixels in images.seen_by(model.image_processor).pixels():
        with torch.no_grad():
            embeddings = model(pixels)
        assert embeddings is not None
        yield embeddings
