"""The concepts of one image: of its class token, of any patch, or of the image as a whole."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from sae_lens import SAE

from sae_lens_sparsemax.data.image_loader import as_rgb
from sae_lens_sparsemax.models.encoding import encode_tokens, hook_name_of
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.patch_geometry import Interpolation, PatchGeometry, patch_geometry
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook

Pooling = Literal["first", "mean"]


@dataclass(frozen=True)
class ImageConcepts:
    """What an SAE makes of one image."""

    image: Image.Image
    """The original, in RGB, turned as its camera was held."""
    feature_acts: torch.Tensor
    """`(n_tokens, d_sae)`: tokens before the patches, such as CLS, then the patches, row by row."""
    n_prefix_tokens: int
    """How many of the tokens come before the patches."""
    geometry: PatchGeometry | None
    """Where the patches are; None for an SAE that reads the class token alone."""

    @property
    def patch_acts(self) -> torch.Tensor:
        """Activations of the patches, `(n_patches, d_sae)`."""
        return self.feature_acts[self.n_prefix_tokens :]

    def of_image(self, how: Pooling = "first") -> torch.Tensor:
        """Activations of the image as a whole, `(d_sae,)`.

        Args:
            how: `"first"`, those of its first token, CLS, where the SAE reads one; `"mean"`, the mean over all tokens,
                which is also taken where there is no such token. Concepts of CLS need not be on any patch.

        Raises:
            ValueError: another word.
        """
        if how not in get_args(Pooling):
            raise ValueError(f"how is {how!r}; it must be one of {', '.join(get_args(Pooling))}.")
        return self.feature_acts[0] if how == "first" and self.n_prefix_tokens else self.feature_acts.mean(0)

    def mask(self, concept: int, interpolation: Interpolation = "nearest") -> np.ndarray:
        """A concept's activations over the original image, `(height, width)`; see `PatchGeometry.mask`.

        Raises:
            ValueError: there is no such concept, or the SAE reads no patches.
        """
        d_sae = self.feature_acts.shape[1]
        if not 0 <= concept < d_sae:
            raise ValueError(f"There is no concept {concept}; concepts are numbered from 0 to {d_sae - 1}.")
        if self.geometry is None:
            raise ValueError("This SAE reads the class token alone, so its concepts have no place in the image.")
        return self.geometry.mask(self.patch_acts[:, concept], interpolation)


@torch.no_grad()
def concepts_of_image(model: HookedViT, sae: SAE[Any], image: Image.Image) -> ImageConcepts:
    """Run one image through a vision model and an SAE on it.

    Args:
        model: the model the SAE was trained on; SAEs attached to it are not used.
        sae: any SAELens SAE whose metadata name the hook.
        image: of any mode and size.

    Raises:
        ValueError: the model has no such hook, no image processor or one that cannot be followed, or another width.
    """
    at_hook = VisionAtHook(model, hook_name_of(sae), sae.cfg.metadata.tokens or "all")
    image = as_rgb(image)
    acts = encode_tokens(sae, at_hook.activations(model.preprocess(image))[0])
    if at_hook.tokens == "cls":
        return ImageConcepts(image, acts, len(acts), None)
    geometry = patch_geometry(model.image_processor, image.size, model.cfg.patch_size)
    return ImageConcepts(image, acts, len(acts) - geometry.n_patches, geometry)
