"""A guess at a name of each concept from its best images: the nearest of a list of words."""

import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from sae_lens_sparsemax.data.class_names import known_words, read_words, shipped_words
from sae_lens_sparsemax.evaluation.naming import ConceptName, embed_words, image_directions, name_concepts
from sae_lens_sparsemax.explore.samples import TopExamples
from sae_lens_sparsemax.explore.streams import ImageStream, TextStream
from sae_lens_sparsemax.settings.sentences import must_be

SHIPPED = "shipped"
"""As a word list, stands for all names of classes that the package carries."""
_AT_A_TIME = 32


def listed_words(words: str) -> list[str]:
    """The words of a file, one a line, or those that SHIPPED stands for.

    Raises:
        ValueError: See `read_words`.
    """
    return shipped_words() if words == SHIPPED else read_words(words)


def usable_words(stream: ImageStream | TextStream, words: list[str]) -> list[str]:
    """Those of the words that concepts can be named with.

    Raises:
        ValueError: The SAE reads text, its model has no text tower, or knows fewer than two of the words.
    """
    if isinstance(stream, TextStream):
        raise ValueError("'words' names the concepts of images; this SAE reads text.")
    embed_words(stream.model, words[:1])  # a model that cannot is told from one word
    known = known_words(stream.model.tokenizer, words)
    if len(known) < 2:
        raise must_be("words", "at least two that the model's tokenizer knows", known)
    return known


@torch.no_grad()
def guess_names(
    stream: ImageStream, examples: TopExamples, words: list[str], *, progress: bool = True
) -> list[ConceptName | None]:
    """Name every concept; None for those that never fired.

    Args:
        stream: The images, and the model whose text embeddings name them.
        examples: The images each concept is named from.
        words: From `usable_words`.
        progress: Whether to show a progress bar.
    """
    word_embeds = embed_words(stream.model, words)
    samples = examples.sample[examples.sample >= 0].unique()
    parts = []
    for group in tqdm(samples.split(_AT_A_TIME), desc="Names", disable=not progress, leave=False):
        embeds = stream.model(stream.model.preprocess([stream.image(n) for n in group.tolist()]))
        assert embeds is not None  # as embeddings are what is returned by default
        parts.append(embeds.float().cpu())
    image_embeds = torch.cat(parts)
    rows = torch.where(examples.sample >= 0, torch.searchsorted(samples, examples.sample.clamp(min=0)), -1)
    directions = image_directions(image_embeds, rows, torch.where(rows >= 0, examples.score, 0))
    return name_concepts(directions, words, word_embeds, mean_embed=normalize(image_embeds, dim=-1).mean(0))
