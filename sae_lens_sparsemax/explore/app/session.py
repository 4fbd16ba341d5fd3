"""What the page asks for, computed: the concepts of an image or a text, and what switching some of them changes.

Every question carries its whole input, so a session keeps no state between them and any number of windows may ask.
Concepts have the labels that the SAE's folder holds, a person's, proposed or of its pages (see `explore.labels`);
what the page begins with is in `opening`.
"""

import base64
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from sae_lens import SAE

from sae_lens_sparsemax.data.class_names import known_words, read_words
from sae_lens_sparsemax.data.image_loader import decode_image
from sae_lens_sparsemax.evaluation.naming import embed_words
from sae_lens_sparsemax.explore.app.answers import concepts_at, first_passes_at, outcomes, spikes
from sae_lens_sparsemax.explore.app.opening import (
    Given,
    as_opening,
    checked_classes,
    offered_classes,
    open_pages,
    opening_images,
    opening_texts,
    take_outliers,
)
from sae_lens_sparsemax.explore.concepts import concepts_of_image, concepts_of_text
from sae_lens_sparsemax.explore.explored import Explored
from sae_lens_sparsemax.explore.labels import shown_labels
from sae_lens_sparsemax.explore.settings import AppSettings
from sae_lens_sparsemax.explore.steering import class_probabilities, next_token_probabilities, steered_text
from sae_lens_sparsemax.models.at_hook import TextAtHook, open_text, text_at_hook
from sae_lens_sparsemax.models.encoding import hook_name_of
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.language_models import predicts_next_tokens
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.models.splice import Change, change_concepts
from sae_lens_sparsemax.models.vision_at_hook import VISION_MODEL_CLASS, VisionAtHook, open_vision
from sae_lens_sparsemax.settings.sentences import must_be

_MOST_PIXELS = 50_000_000


class Session(Protocol):
    """One model and one SAE on it."""

    @property
    def kind(self) -> Literal["image", "text"]:
        """What is given to it."""
        ...

    most_bytes: int
    """Largest question, as JSON."""
    sae: SAE[Any]
    labels: Mapping[int, str]
    """What its concepts are about, of those of which something says so."""
    pages: Explored | None
    """What `explore` wrote of the SAE."""

    @property
    def opening(self) -> dict[str, Any]:
        """What the page begins with, as JSON values: `examples` (`name`, `given`), `classes` of images, `n_classes` (0
        for a model that does not classify), and `steers`: whether it goes on with a text."""
        ...

    def inspect(
        self, given: str, position: int | None, changes: Mapping[int, Change], classes: list[str] | None = None
    ) -> dict[str, Any]:
        """Concepts of an input at a position, and the model's outcomes with and without the changes, as JSON values.

        Args:
            given: a text, or an image file in base64.
            position: patch or token; None for the image as a whole, or the last token.
            changes: from concept to change, at every token.
            classes: what an image may show; None for those that the page begins with.

        Returns:
            `position`, `d_sae`, `n_active`, `spikes` (concept and activation of all that are active at the position),
            `peaks` (concept and largest activation of all that are active anywhere),
            `concepts` (`concept`, `label`: what it is about, "" if nothing says, `act`, `pass`: which selected it,
            None where it is not active or the SAE has but one, and `places`: activation at each patch or token; the top
            ones, and those changed), `outcomes`
            (`label`, `before`, `after`: probabilities; the likeliest of either; None for a model without) and, for
            images, `size`, `box` and `grid` of the patches and `class_token` (whether that stands for the whole), for
            texts `tokens` and `left_out` (why the SAE was trained without each token, None for the others).

        Raises:
            ValueError: what was given is no image, or no text, or does not fit.
        """
        ...

    def steer(self, given: str, changes: Mapping[int, Change], **sampling: Any) -> dict[str, Any]:
        """How a text goes on without and with the changes; see `steering.steered_text`.

        Raises:
            ValueError: an argument is out of its range, or the model does not go on with texts.
        """
        ...


class ImageSession:
    """An SAE on a vision model; outcomes are CLIP's scores of `words`, if the model has a text tower."""

    kind: Literal["image"] = "image"
    most_bytes = 32 * 2**20

    def __init__(
        self,
        model: HookedViT,
        sae: SAE[Any],
        words: list[str] | None = None,
        labels: Mapping[int, str] | None = None,
        pages: Explored | None = None,
        *,
        examples: Sequence[Given] = (),
    ):
        self.model, self.sae, self.words, self.labels, self.pages = model, sae, words or [], labels or {}, pages
        self.at_hook = VisionAtHook(model, hook_name_of(sae), sae.cfg.metadata.tokens or "all")
        self.examples = examples
        self._embed = lru_cache(maxsize=8)(lambda classes: embed_words(model, list(classes)))
        self.word_embeds = self._embed(tuple(self.words)) if self.words else None

    @property
    def opening(self) -> dict[str, Any]:
        """See `Session`."""
        return as_opening(self.examples, self.words, classifies=bool(self.words) or self.model.tokenizer is not None)

    def _classes(self, classes: list[str] | None) -> tuple[list[str], torch.Tensor | None]:
        """Names and embeddings of the classes that an image may show."""
        if classes is None or self.model.tokenizer is None:
            return self.words, self.word_embeds
        classes = checked_classes(self.model.tokenizer, classes)
        return classes, self._embed(tuple(classes))

    def steer(self, given: str, changes: Mapping[int, Change], **sampling: Any) -> dict[str, Any]:  # noqa: ARG002
        """See `Session`."""
        raise ValueError("A model that sees images goes on with no text; its classes say what a change does.")

    @torch.no_grad()
    def inspect(
        self, given: str, position: int | None, changes: Mapping[int, Change], classes: list[str] | None = None
    ) -> dict[str, Any]:
        """See `Session`."""
        words, word_embeds = self._classes(classes)
        edit, image = change_concepts(self.sae, changes), _image(given)
        found = concepts_of_image(self.model, self.sae, image)
        geometry = found.geometry
        n_patches = geometry.n_patches if geometry else 0
        if position is not None and not 0 <= position < n_patches:
            raise ValueError(f"There is no patch {position}; this image has {n_patches}.")
        acts = found.of_image() if position is None else found.patch_acts[position]
        token = found.n_prefix_tokens + position if position is not None else 0 if found.n_prefix_tokens else None
        passes = first_passes_at(found.first_passes, token)
        places = found.patch_acts if geometry else found.feature_acts[:0]
        answer = concepts_at(acts, places, changes, passes, self.labels)
        answer |= {
            "position": position,
            "size": image.size,
            "box": geometry.box if geometry else None,
            "grid": geometry.grid if geometry else None,
            "class_token": found.n_prefix_tokens > 0,
            "outcomes": None,
        }
        answer["peaks"] = spikes(found.feature_acts.abs().amax(0))
        if word_embeds is not None:
            pixels = self.model.preprocess(image)
            scores = class_probabilities(self.at_hook, pixels, word_embeds, edit if changes else None)
            answer["outcomes"] = outcomes(*scores, lambda indices: [words[i] for i in indices])
        return answer


class TextSession:
    """An SAE on a language model; outcomes are next tokens after the position, if the model predicts them."""

    kind: Literal["text"] = "text"
    most_bytes = 2**20

    def __init__(
        self, model: Any, sae: SAE[Any], labels: Mapping[int, str] | None = None, pages: Explored | None = None
    ):
        self.model, self.sae, self.labels, self.pages = model, sae, labels or {}, pages
        self.has_outcomes = predicts_next_tokens(model)

    @property
    def at_hook(self) -> TextAtHook:
        """The model at the SAE's hook; pages that come later may say which tokens are outliers."""
        return text_at_hook(self.model, self.sae)

    @property
    def opening(self) -> dict[str, Any]:
        """See `Session`."""
        return as_opening(opening_texts(self.at_hook), steers=self.has_outcomes)

    def steer(self, given: str, changes: Mapping[int, Change], **sampling: Any) -> dict[str, Any]:
        """See `Session`."""
        return steered_text(self.at_hook, given, changes, **sampling)._asdict()

    @torch.no_grad()
    def inspect(
        self, given: str, position: int | None, changes: Mapping[int, Change], classes: list[str] | None = None
    ) -> dict[str, Any]:
        """See `Session`."""
        if classes is not None:
            raise must_be("classes", "left out, as a language model chooses among its tokens", classes)
        edit, found = change_concepts(self.sae, changes), concepts_of_text(self.model, self.sae, given)
        n_tokens = len(found.tokens)
        position = n_tokens - 1 if position is None else position
        if not 0 <= position < n_tokens:
            raise ValueError(f"There is no token {position}; this text has {n_tokens}.")
        passes = first_passes_at(found.first_passes, position)
        answer = concepts_at(found.feature_acts[position], found.feature_acts, changes, passes, self.labels)
        left_out = [next((why for why, mask in found.left_out.items() if mask[i]), None) for i in range(n_tokens)]
        answer |= {"position": position, "tokens": found.tokens, "left_out": left_out, "outcomes": None}
        answer["peaks"] = spikes(found.feature_acts.abs().amax(0))
        if not self.has_outcomes:
            return answer
        next_tokens = next_token_probabilities(
            self.at_hook, found.token_ids[None], found.is_read[None], position, edit if changes else None
        )
        texts = outcomes(*next_tokens, lambda indices: [self.at_hook.token_text(i) for i in indices])
        return answer | {"outcomes": texts}


def _image(given: str) -> Image.Image:
    """The image in a file in base64.

    Raises:
        ValueError: it is no image, broken, or too large.
    """
    try:
        return decode_image({"bytes": base64.b64decode(given, validate=True), "path": None}, _MOST_PIXELS)
    except ValueError as error:
        raise ValueError(f"This file cannot be taken for an image: {error}") from error


def open_session(source: str, settings: AppSettings | None = None) -> Session:
    """Load an SAE and the model it was trained on.

    Args:
        source: folder of an SAE, or `user/repository:id` on the hub.
        settings: what replaces the model in the SAE's metadata, the words for CLIP to choose from, and the pages.

    Raises:
        ValueError: the SAE, the model or the pages cannot be loaded or do not fit, or there are words for a model
            without any use for them.
    """
    settings = settings or AppSettings()
    device = settings.device
    sae = load_sae(source, device)
    meta = sae.cfg.metadata
    pages = open_pages(source, sae, settings.pages)
    labels = shown_labels(source, pages)
    model_class_name = settings.model_class_name or meta.model_class_name
    if model_class_name != VISION_MODEL_CLASS:
        if settings.words is not None:
            raise ValueError("Words are for CLIP to choose from; a language model chooses among its tokens.")
        take_outliers(sae, pages)
        at_hook = open_text(sae, settings.model_name, model_class_name, device=device)
        return TextSession(at_hook.model, sae, labels, pages)
    name = settings.model_name or meta.model_name
    vit = open_vision(sae, name, device=device).model
    examples = opening_images(sae, pages)
    if vit.tokenizer is None:
        if settings.words is not None:
            raise ValueError(f"Words need a model with a text tower and its tokenizer; {name!r} has none.")
        return ImageSession(vit, sae, labels=labels, pages=pages, examples=examples)
    if settings.words:
        words = known_words(vit.tokenizer, read_words(settings.words))
    else:
        words = offered_classes(vit.tokenizer, sae, pages)
    return ImageSession(vit, sae, words, labels, pages, examples=examples)
