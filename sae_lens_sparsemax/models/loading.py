"""A vision model by name, with one sentence for the user if it is not there."""

from typing import Any

import torch

from sae_lens_sparsemax.models.hooked_vit import HookedViT


def load_vision_model(
    name_or_path: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, **kwargs: Any
) -> HookedViT:
    """`HookedViT.from_pretrained`, which always brings an image processor, with every failure as a `ValueError`.

    Raises:
        ValueError: the model, or its image processor, is missing or cannot be hooked.
    """
    try:
        return HookedViT.from_pretrained(name_or_path, device, dtype, **kwargs)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The model {name_or_path!r} could not be loaded; give --model if it has moved: {reason}"
        ) from error
