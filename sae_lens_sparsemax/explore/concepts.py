"""The concepts of single inputs: what an image or a text activates, and where."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from sae_lens import SAE

from sae_lens_sparsemax.data.image_loader import as_rgb
from sae_lens_sparsemax.models.at_hook import text_at_hook
from sae_lens_sparsemax.models.encoding import encode_tokens, first_passes, has_passes, hook_name_of
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.patch_geometry import Interpolation, PatchGeometry, patch_geometry
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook
from sae_lens_sparsemax.settings.sentences import must_be, must_be_one_of

ImagePooling = Literal["first", "mean"]


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
    first_passes: torch.Tensor | None = None
    """`(n_tokens, d_sae)` sparse: the pass that first selected each active concept, where there are several passes."""

    @property
    def patch_acts(self) -> torch.Tensor:
        """Activations of the patches, `(n_patches, d_sae)`."""
        return self.feature_acts[self.n_prefix_tokens :]

    def of_image(self, how: ImagePooling = "first") -> torch.Tensor:
        """Activations of the image as a whole, `(d_sae,)`.

        Args:
            how: `"first"`, those of its first token, CLS, where the SAE reads one; `"mean"`, the mean over all tokens,
                which is also taken where there is no such token. Concepts of CLS need not be on any patch.

        Raises:
            ValueError: another word.
        """
        if how not in get_args(ImagePooling):
            raise must_be_one_of("how", how, get_args(ImagePooling))
        return self.feature_acts[0] if how == "first" and self.n_prefix_tokens else self.feature_acts.mean(0)

    def mask(self, concept: int, interpolation: Interpolation = "nearest") -> np.ndarray:
        """A concept's activations over the original image, `(height, width)`; see `PatchGeometry.mask`.

        Raises:
            ValueError: there is no such concept, or the SAE reads no patches.
        """
        d_sae = self.feature_acts.shape[1]
        if not 0 <= concept < d_sae:
            raise must_be("concept", f"between 0 and {d_sae - 1}", concept)
        if self.geometry is None:
            raise ValueError("This SAE reads the class token alone, so its concepts have no place in the image.")
        return self.geometry.mask(self.patch_acts[:, concept], interpolation)


class TextConcepts(NamedTuple):
    """What an SAE makes of one text."""

    token_ids: torch.Tensor
    """`(n_tokens,)`, with the token that the model puts before a text."""
    tokens: list[str]
    """Each token as it reads in the text; of a character that is cut into several, the first has it all."""
    feature_acts: torch.Tensor
    """`(n_tokens, d_sae)`; zero at tokens that the SAE was trained without."""
    left_out: dict[str, torch.Tensor]
    """Why the SAE was trained without tokens, and which, `(n_tokens,)` bool; see `TextAtHook.left_out`."""
    is_read: torch.Tensor
    """`(n_tokens,)` bool: the others."""
    first_passes: torch.Tensor | None = None
    """`(n_tokens, d_sae)` sparse: the pass that first selected each active concept, where there are several passes."""


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
    activations = at_hook.activations(model.preprocess(image))[0]
    acts = encode_tokens(sae, activations)
    first = first_passes(sae, activations) if has_passes(sae) else None
    if at_hook.tokens == "cls":
        return ImageConcepts(image, acts, len(acts), None, first)
    geometry = patch_geometry(model.image_processor, image.size, model.cfg.patch_size)
    return ImageConcepts(image, acts, len(acts) - geometry.n_patches, geometry, first)


@torch.no_grad()
def concepts_of_text(model: Any, sae: SAE[Any], text: str) -> TextConcepts:
    """Run one text through a language model and an SAE on it.

    Args:
        model: a hooked language model, as `load_language_model` gives it.
        sae: any SAELens SAE whose metadata name the hook.
        text: not empty, and no longer than the contexts the SAE was trained on.

    Raises:
        ValueError: empty or too long text, no such hook, or another width.
    """
    if not text.strip():
        raise ValueError("The text is empty.")
    at_hook = text_at_hook(model, sae)
    limit = sae.cfg.metadata.context_size
    tokens = at_hook.tokens(text)[None]
    if limit and tokens.shape[1] > limit:
        raise ValueError(f"The text has {tokens.shape[1]} tokens, more than the {limit} that the SAE was trained on.")
    if not tokens.numel():
        raise ValueError("The text has no tokens.")
    activations = at_hook.activations(tokens)
    left_out = {why: mask[0].cpu() for why, mask in at_hook.left_out(tokens, activations).items()}
    is_read = ~torch.stack(list(left_out.values())).any(0)
    token_ids = tokens[0].cpu()
    acts = encode_tokens(sae, activations[0]) * is_read[:, None]
    first = first_passes(sae, activations[0]) if has_passes(sae) else None
    return TextConcepts(token_ids, at_hook.token_texts(token_ids.tolist()), acts, left_out, is_read, first)
