"""What the metadata of an SAE on a vision model say about where it belongs, whoever trained it."""

from __future__ import annotations

from typing import Any

from sae_lens_sparsemax import __version__
from sae_lens_sparsemax.models.hooked_vit import HookedViT


def model_metadata(model: HookedViT) -> dict[str, Any]:
    """What the model gives: tokens of an image, how many of them come before the patches, preprocessing, version."""
    return {
        "context_size": model.cfg.n_ctx,
        "n_prefix_tokens": model.cfg.n_prefix_tokens,
        "image_processor": model.image_processor.to_dict(),
        "sae_lens_sparsemax_version": __version__,
    }
