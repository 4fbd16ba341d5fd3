"""How often a guessed name is right: concepts are named from half of the images and checked on the other half.

A name is right if it is the class that most of the concept's top images of the other half belong to. It is a lenient
test, with class names for words; that names from images beat names from the decoder by far is what it is there to show.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import SAE
from torch.nn.functional import normalize, one_hot

from sae_lens_sparsemax.evaluation.concept_counts import check_labels
from sae_lens_sparsemax.evaluation.naming import ConceptName, image_directions, name_concepts
from sae_lens_sparsemax.models.encoding import encode_images
from sae_lens_sparsemax.settings.sentences import must_be

ONE_CLASS = 0.7
"""A concept is of one class if at least this part of its top images are."""


@dataclass(frozen=True)
class NameAgreement:
    """Shares of concepts whose name fits images that it was not named from."""

    n_images: int
    """Images, half to name from and half to check on."""
    n_concepts: int
    """Concepts active on at least `n_top` images of each half; the others are not judged."""
    chance: float
    """What random names would reach: one over the number of classes."""
    from_images: float
    """Share of right names, from each concept's top images."""
    from_decoder: float | None
    """Share of right names, from the decoder; None where it cannot be read as image embeddings."""
    n_one_class: int
    """Concepts whose top images of the second half are mostly of one class."""
    from_images_one_class: float
    """`from_images` among those."""
    from_decoder_one_class: float | None
    """`from_decoder` among those."""


@torch.no_grad()
def evaluate_names(
    sae: SAE[Any],
    images: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    words: list[str],
    word_embeds: torch.Tensor,
    decoder: torch.Tensor | None = None,
    *,
    n_top: int = 10,
) -> NameAgreement:
    """Name every concept from every second image, and compare with the classes of its top images among the others.

    Args:
        sae: Any SAELens SAE.
        images: Batches of activations `(images, tokens, d_in)`, embeddings `(images, d_embed)` and labels `(images,)`,
            in random order.
        words: Class names, in the order of the labels.
        word_embeds: `(n_words, d_embed)`, from `naming.embed_words`.
        decoder: `(d_sae, d_embed)`, from `naming.decoder_directions`, if that is to be judged too.
        n_top: Images of each half that a concept is named from and checked on.

    Raises:
        ValueError: A label has no word, or there are fewer than two images.
    """
    halves = (_TopImages(sae.cfg.d_sae, n_top), _TopImages(sae.cfg.d_sae, n_top))
    n_images = 0
    for acts, embeds, labels in images:
        labels = check_labels(labels, len(words))
        is_second = (torch.arange(len(labels)) + n_images) % 2 == 1
        n_images += len(labels)
        for half, part in zip(halves, (~is_second, is_second), strict=True):
            if part.any():
                half.add(sae, acts[part], embeds[part].float().cpu(), labels[part])
    if n_images < 2:
        raise must_be("images with a label", "at least two, one to name from and one to check on", n_images)
    first, second = halves
    votes = one_hot(second.label[second.image.clamp(min=0)], len(words)).sum(1)
    is_judged = (first.image >= 0).all(1) & (second.image >= 0).all(1)
    is_one_class = is_judged & (votes.amax(1) >= ONE_CLASS * n_top)
    directions = image_directions(first.embeds, first.image, first.act)
    mean_embed = normalize(first.embeds, dim=-1).mean(0)
    by_images = name_concepts(directions, words, word_embeds, mean_embed=mean_embed)
    by_decoder = None if decoder is None else name_concepts(decoder, words, word_embeds)

    def share(names: list[ConceptName | None], judged: torch.Tensor) -> float:
        named = torch.tensor([words.index(name.name) if name else -1 for name in names])
        return (named == votes.argmax(1))[judged].double().mean().item()

    return NameAgreement(
        n_images=n_images,
        n_concepts=int(is_judged.sum()),
        chance=1 / len(words),
        from_images=share(by_images, is_judged),
        from_decoder=None if by_decoder is None else share(by_decoder, is_judged),
        n_one_class=int(is_one_class.sum()),
        from_images_one_class=share(by_images, is_one_class),
        from_decoder_one_class=None if by_decoder is None else share(by_decoder, is_one_class),
    )


class _TopImages:
    """The images on which each concept is strongest on average over their tokens, and what all images are."""

    def __init__(self, d_sae: int, k: int) -> None:
        self.image = torch.full((d_sae, k), -1, dtype=torch.int64)  # -1 where there are fewer than k
        self.act = torch.zeros(d_sae, k)
        self._embeds: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    @property
    def embeds(self) -> torch.Tensor:
        return torch.cat(self._embeds)

    @property
    def label(self) -> torch.Tensor:
        return torch.cat(self._labels)

    def add(self, sae: SAE[Any], acts: torch.Tensor, embeds: torch.Tensor, labels: torch.Tensor) -> None:
        start = sum(map(len, self._labels))
        self._embeds.append(embeds)
        self._labels.append(labels)
        for chunk in encode_images(sae, [acts]):
            found = chunk.acts
            dense = torch.zeros(found.n_rows, found.d_sae)
            dense[found.row.cpu(), found.col.cpu()] = found.value.cpu().float()
            ids = torch.arange(start, start + found.n_rows).expand(found.d_sae, -1)
            start += found.n_rows
            act, place = torch.cat([self.act, dense.T], 1).topk(self.act.shape[1], dim=1)
            self.image = torch.cat([self.image, ids], 1).gather(1, place).where(act > 0, -1)
            self.act = act
