"""Names for the concepts of a CLIP or SigLIP SAE: the nearest text of a word list. A guess, and to be shown as one.

A concept's place among the texts is the mean embedding of the images it fires on most (`image_directions`) or, with
no image at hand, its decoder row read through the model's last norm and projection (`decoder_directions`).
The images are the better guide. On a small CLIP of CIFAR-10 (`configs/compare/mini_clip_all.yaml`, sparsemax at L0 16,
then `evaluate --suite vision --groups names --n_images 8000`, with the ten class names as words), names from a
concept's ten top images are the majority class of its ten top images among 4,000 others for 46 % of the concepts, names
from the decoder for 18 %, where chance is 10 %; of the 46 concepts whose top images are mostly of one class, for 94 %
and 28 %.
"""

from typing import Any, NamedTuple

import torch
from sae_lens import SAE
from torch.nn.functional import normalize

from sae_lens_sparsemax.data.drawings import CAPTION
from sae_lens_sparsemax.data.quickstart import quickstart_vision_model_path
from sae_lens_sparsemax.evaluation.classification import text_prototypes
from sae_lens_sparsemax.models.encoding import hook_name_of
from sae_lens_sparsemax.models.final_norm import before_norm
from sae_lens_sparsemax.models.hooked_vit import HookedViT

TEMPLATES = ["a photo of a {}"]


class ConceptName(NamedTuple):
    """A guess at what a concept is about."""

    name: str
    """The nearest word or phrase of the list."""
    similarity: float
    """Cosine with it, both relative to their means."""
    margin: float
    """How much nearer it is than the second."""


def name_concepts(
    directions: torch.Tensor, words: list[str], word_embeds: torch.Tensor, *, mean_embed: torch.Tensor | None = None
) -> list[ConceptName | None]:
    """The nearest word to each direction.

    Images and texts lie in two narrow cones of CLIP's space, far apart, so both are taken relative to their means:
    what is left is how an image or a word differs from the others.

    Args:
        directions: `(n_concepts, d_embed)`, from `image_directions` or `decoder_directions`; a row of zeros (a dead
            concept) gets no name.
        words: at least two.
        word_embeds: `(n_words, d_embed)`, from `embed_words`.
        mean_embed: `(d_embed,)`, subtracted from the directions: the mean embedding over many images for those of
            `image_directions`, nothing for those of the decoder.

    Raises:
        ValueError: fewer than two words, or shapes that do not fit.
    """
    if len(words) < 2 or word_embeds.shape != (len(words), directions.shape[1]):
        raise ValueError(
            f"{len(words)} words with embeddings of shape {tuple(word_embeds.shape)} cannot name directions of width "
            f"{directions.shape[1]}; it takes at least two words and one embedding each."
        )
    is_dead = (directions == 0).all(-1)
    relative = directions if mean_embed is None else directions - mean_embed
    cosines = (
        normalize(relative.float(), dim=-1) @ normalize(word_embeds.float() - word_embeds.float().mean(0), dim=-1).T
    )
    best, index = cosines.topk(2, dim=-1)
    return [
        None if dead else ConceptName(words[i], first, first - second)
        for dead, (i, _), (first, second) in zip(is_dead.tolist(), index.tolist(), best.tolist(), strict=True)
    ]


def embed_words(model: HookedViT, words: list[str], templates: list[str] | None = None) -> torch.Tensor:
    """Unit-norm embeddings of words in prompts, `(n_words, d_embed)`.

    Args:
        model: CLIP or SigLIP.
        words: what stands in the prompts.
        templates: prompts with `{}` for the word; by default "a photo of a {}", and for the package's own model what
            it has learnt.

    Raises:
        ValueError: the model has no text tower or no tokenizer.
    """
    is_own = model.model.config.name_or_path == str(quickstart_vision_model_path())
    return text_prototypes(model.encode_text, words, templates or ([CAPTION] if is_own else TEMPLATES)).cpu()


@torch.no_grad()
def decoder_directions(model: HookedViT, sae: SAE[Any]) -> torch.Tensor:
    """Decoder rows read through the model's final norm and its projection, see `before_norm`.

    Returns:
        `(d_sae, d_embed)`: what each concept adds to the embedding if it goes straight to the output, as a logit lens
        reads it.

    Raises:
        ValueError: the SAE is not on the residual stream, or the model has no such projection (SigLIP pools with
            attention instead).
    """
    hook_name = hook_name_of(sae)
    projection = getattr(model.model, "visual_projection", None)
    is_residual = hook_name.rsplit(".", 1)[-1].startswith("hook_resid") or hook_name == "hook_embed"
    if projection is None or not is_residual:
        raise ValueError(
            f"The decoder at {hook_name!r} of a {type(model.model).__name__} cannot be read as image embeddings; that "
            "takes the residual stream of a CLIP model. Name the concepts from images."
        )
    rows = sae.W_dec.detach().to(model.device, torch.float32)
    return (rows @ before_norm(model.ln_final.wrapped, projection.weight.T)).cpu()


def image_directions(image_embeds: torch.Tensor, top_images: torch.Tensor, top_acts: torch.Tensor) -> torch.Tensor:
    """Mean embedding of the images that each concept fires on most, weighted by how much it does.

    Args:
        image_embeds: `(n_images, d_embed)`, from `HookedViT.forward`.
        top_images: `(n_concepts, k)` rows of `image_embeds`; negative where there are fewer than k.
        top_acts: `(n_concepts, k)` activations; their size is the weight.

    Returns:
        `(n_concepts, d_embed)`; zeros for a concept without images.
    """
    weights = torch.where(top_images >= 0, top_acts.abs(), 0).to(image_embeds.dtype)
    embeds = normalize(image_embeds, dim=-1)[top_images.clamp(min=0)]
    total = weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return torch.einsum("ck,ckd->cd", weights / total, embeds)
