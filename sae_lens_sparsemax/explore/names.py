"""A guess at a name of each concept of an SAE on images: the nearest of a list of words to its best examples."""

import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.words import read_words, shipped_words
from sae_lens_sparsemax.evaluation.naming import ConceptName, embed_words, image_directions, name_concepts
from sae_lens_sparsemax.explore.examples import TopExamples
from sae_lens_sparsemax.explore.images import ImageStream

SHIPPED = "shipped"
"""Stands for all names of classes that the package carries."""
_AT_A_TIME = 32


@torch.no_grad()
def guess_names(
    stream: ImageStream, examples: TopExamples, words: str, *, progress: bool = True
) -> list[ConceptName | None]:
    """
    Name every concept; None for those that never fired.

    Args:
        stream: The images, and the model whose text embeddings name them.
        examples: The images each concept is named from.
        words: File with one word a line, or SHIPPED.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: The model has no text tower, or there are no words.
    """
    vocabulary = shipped_words() if words == SHIPPED else read_words(words)
    word_embeds = embed_words(stream.model, vocabulary)
    samples = examples.sample[examples.sample >= 0].unique()
    parts = []
    for group in tqdm(samples.split(_AT_A_TIME), desc="Names", disable=not progress, leave=False):
        embeds = stream.model(stream.model.preprocess([stream.image(n) for n in group.tolist()]))
        assert embeds is not None  # as embeddings are what is returned by default
        parts.append(embeds.float().cpu())
    image_embeds = torch.cat(parts)
    rows = torch.where(examples.sample >= 0, torch.searchsorted(samples, examples.sample.clamp(min=0)), -1)
    directions = image_directions(image_embeds, rows, torch.where(rows >= 0, examples.score, 0))
    return name_concepts(directions, vocabulary, word_embeds, mean_embed=normalize(image_embeds, dim=-1).mean(0))
