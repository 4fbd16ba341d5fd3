"""Classes as text embeddings: the zero-shot classifier of CLIP and SigLIP (Radford et al., 2021, section 3.1)."""

import torch

from sae_lens_sparsemax.models.hooked_vit import HookedViT

_TEXTS_AT_A_TIME = 256


@torch.no_grad()
def text_prototypes(model: HookedViT, class_names: list[str], templates: list[str]) -> torch.Tensor:
    """One unit-norm vector per class: the mean of the normalised embeddings of its prompts, normalised again.

    Args:
        model: a whole CLIP or SigLIP model with its tokenizer.
        class_names: as they should appear in a sentence.
        templates: prompts with one `{}` each for the class name.

    Returns:
        `(n_classes, d_embed)`

    Raises:
        ValueError: the model has no text tower or no tokenizer.
    """
    prompts = [template.format(name) for name in class_names for template in templates]
    embeds = torch.cat(
        [model.encode_text(prompts[i : i + _TEXTS_AT_A_TIME]) for i in range(0, len(prompts), _TEXTS_AT_A_TIME)]
    )
    embeds = torch.nn.functional.normalize(embeds, dim=-1)
    means = embeds.unflatten(0, (len(class_names), len(templates))).mean(dim=1)
    return torch.nn.functional.normalize(means, dim=-1)


def contrastive_loss(logits: torch.Tensor) -> torch.Tensor:
    """CLIP's training loss on pairs of an image and its text: cross-entropy over both directions, averaged.

    Args:
        logits: `(n_pairs, n_pairs)`, scaled similarities of images (rows) and texts; pairs on the diagonal.
    """
    pairs = torch.arange(len(logits), device=logits.device)
    per_image = torch.nn.functional.cross_entropy(logits, pairs)
    return (per_image + torch.nn.functional.cross_entropy(logits.T, pairs)) / 2
