"""For notebooks: the concepts of texts and images as a table, and what a model says with some of them changed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from sae_lens import SAE

from sae_lens_sparsemax.data.class_names import require_known
from sae_lens_sparsemax.data.image_loader import as_rgb
from sae_lens_sparsemax.evaluation.naming import embed_words
from sae_lens_sparsemax.explore.app.opening import distinct_classes, offered_classes, open_pages, take_outliers
from sae_lens_sparsemax.explore.concepts import ImageConcepts, TextConcepts, concepts_of_image, concepts_of_text
from sae_lens_sparsemax.explore.explored import Explored
from sae_lens_sparsemax.explore.labels import labels_of
from sae_lens_sparsemax.explore.steering import SteeredText, as_changes, as_whole, class_probabilities, steered_text
from sae_lens_sparsemax.files import reason
from sae_lens_sparsemax.models.at_hook import TextAtHook, open_text, text_at_hook
from sae_lens_sparsemax.models.encoding import hook_name_of
from sae_lens_sparsemax.models.hooked_vit import HookedViT
from sae_lens_sparsemax.models.language_models import model_key
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.models.splice import Change, change_concepts
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook, open_vision, reads_images
from sae_lens_sparsemax.settings.sentences import must_be

_last_model: dict[str, Any] = {}
"""The model that was opened last for an SAE, by what its metadata say of it."""


class SteeredImage(NamedTuple):
    """What a model takes an image for, without and with a change."""

    scores: pd.DataFrame
    """`label`, `before` and `after`: probabilities of the classes, likeliest before first."""
    heat: dict[int, np.ndarray]
    """For each changed concept its activations over the image as it is, `(height, width)`, as `patch_mask` draws them;
    empty for an SAE that reads the class token alone."""


def concepts_of(
    given: Any,
    sae: SAE[Any] | str | Path,
    model: Any = None,
    *,
    n: int | None = None,
    labels: Mapping[int, str] | None = None,
    device: str = "cpu",
) -> pd.DataFrame:
    """The concepts that texts or images activate, token by token.

        concepts_of("The river of stone", "output/quickstart").groupby("concept").activation.max()

    Args:
        given: a text, an image or the path of one, or a list of either, as the SAE's model reads them.
        sae: any SAELens SAE whose metadata name its hook, its folder, or `release_or_repo:id`.
        model: the SAE's model with hooks (HookedTransformer, SAETransformerBridge, SAELens's wrapped
            AutoModelForCausalLM, HookedViT); None loads the one that the metadata name and keeps it for the next call.
        n: the strongest concepts of each token alone; None for all.
        labels: what concepts are about; by default what lies beside the SAE, if `sae` is no object.
        device: where SAE and model are loaded.

    Returns:
        A row for each active concept of each token, tokens in their order, the strongest concept first: `sample` (which
        of `given`), `position`; for texts `token`, for images `row` and `column` of the patch (none for CLS);
        `concept`, `activation`, `pass` (which first selected it; none with one pass) and `label`.

    Raises:
        ValueError: nothing is given or it is of another kind, it cannot be read, or model and SAE do not fit.
    """
    at_hook, sae_opened, pages = _opened(sae, model, device)
    if n is not None and as_whole(n, "n") < 1:
        raise must_be("n", "at least 1", n)
    if labels is None:
        named = labels_of(sae, pages) if isinstance(sae, str | Path) else {}
        labels = {concept: label.text for concept, label in named.items()}
    elif not isinstance(labels, Mapping | pd.Series):
        raise must_be("labels", "a mapping from concepts to what they are about", labels)
    samples = list(given) if isinstance(given, list | tuple) else [given]
    if not samples:
        raise must_be("given", "a text, an image, or a list of them", given)
    parts = []
    for number, sample in enumerate(samples):
        if isinstance(at_hook, TextAtHook):
            found = concepts_of_text(at_hook.model, sae_opened, _text(sample))
        else:
            found = concepts_of_image(at_hook.model, sae_opened, _image(sample))
        parts.append(_table(found, number, n))
    table = pd.concat(parts, ignore_index=True)
    table["label"] = table["concept"].map(labels).astype(object).fillna("")
    return table


def steer(
    given: Any,
    sae: SAE[Any] | str | Path,
    changes: Mapping[int, Change | float],
    model: Any = None,
    *,
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    device: str = "cpu",
) -> SteeredText | SteeredImage:
    """What the model says with concepts changed, beside what it says without.

        steer("Once upon a time", "output/quickstart", {12: 8.0, 40: Change(factor=0)})

    Args:
        given: a text to go on with; or an image, or the path of one, for CLIP or SigLIP to classify.
        sae, model, device: as `concepts_of` takes them.
        changes: from concept to what is done at every token that the SAE reads. A number is added to the activation,
            wherever it is; `Change(factor=0)` switches the concept off, `Change(factor=2)` doubles it where it is
            active, `Change(factor=0, add=5)` sets it to 5. What the SAE misses stays as it is.
        max_new_tokens: of texts: how far to go on, at most.
        temperature: of texts: 0 takes the likeliest token each time; both texts are drawn with the same random numbers.
        seed: of texts: of the sampling.
        classes: of images: what to choose from; by default what the app offers, the classes of the images that the SAE
            was explored or trained on or, where those are not at hand, all names of classes in the package.

    Returns:
        Of a text its continuations without and with the change; of an image its class probabilities.

    Raises:
        ValueError: a concept that there is not, an argument out of its range, or what is given does not fit.
    """
    at_hook, sae, pages = _opened(sae, model, device)
    done = as_changes(changes)
    if isinstance(at_hook, TextAtHook):
        if classes is not None:
            raise must_be("classes", "left out, as a language model chooses among its tokens", classes)
        sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        return steered_text(at_hook, _text(given), done, **sampling)
    edit, vit = change_concepts(sae, done), at_hook.model
    if not vit.classifies:
        raise must_be("model", "a CLIP or SigLIP model with its tokenizer to classify with", type(vit.model).__name__)
    if classes is not None:
        names = distinct_classes(classes)
        require_known(vit.tokenizer, names)
    else:
        names = offered_classes(vit.tokenizer, sae, pages)
    if not names:
        raise must_be("classes", "given, as no classes of this SAE's images are known", classes)
    image = _image(given)
    before, after = class_probabilities(at_hook, vit.preprocess(image), embed_words(vit, names), edit)
    scores = pd.DataFrame({"label": names, "before": before.numpy(), "after": after.numpy()})
    found = concepts_of_image(vit, sae, image)
    heat = {} if found.geometry is None else {concept: found.mask(concept) for concept in done}
    return SteeredImage(scores.sort_values("before", ascending=False, ignore_index=True), heat)


def _opened(
    sae: SAE[Any] | str | Path, model: Any, device: str
) -> tuple[TextAtHook | VisionAtHook, SAE[Any], Explored | None]:
    """A model at the hook of an SAE, the SAE, and its pages if it is not given as an object."""
    pages = None
    if isinstance(sae, str | Path):
        source, sae = str(sae), load_sae(str(sae), device)
        pages = open_pages(source, sae, None)
        take_outliers(sae, pages)
    meta = sae.cfg.metadata
    if model is None:
        loading = (meta.model_from_pretrained_kwargs, device)
        key = model_key(meta.model_class_name, meta.model_name, meta.hook_name, *loading)
        if key not in _last_model:
            _last_model.clear()
            _last_model[key] = (open_vision if reads_images(sae) else open_text)(sae, device=device).model
        model = _last_model[key]
    if isinstance(model, HookedViT):
        return VisionAtHook(model, hook_name_of(sae), meta.tokens or "all"), sae, pages
    if not (hasattr(model, "run_with_hooks") and hasattr(model, "to_tokens")):
        raise must_be("model", "a model with hooks, or None to load the SAE's own", type(model).__name__)
    return text_at_hook(model, sae), sae, pages


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise must_be("given", "a text, as this SAE's model reads text", type(given).__name__)
    return given


def _image(given: Any) -> Image.Image:
    if isinstance(given, Image.Image):
        return as_rgb(given)
    wanted = "an image (PIL's) or the path of one, as this SAE's model sees images"
    if not (isinstance(given, str | Path) or hasattr(given, "read")):
        raise must_be("given", wanted, type(given).__name__)
    try:
        with Image.open(given) as image:
            return as_rgb(image)
    except (OSError, ValueError) as error:
        raise ValueError(f"{must_be('given', wanted, given)}: {reason(error)}") from error


def _table(found: TextConcepts | ImageConcepts, sample: int, n: int | None) -> pd.DataFrame:
    """The rows of one text or image, without labels."""
    acts = found.feature_acts
    order = acts.abs().argsort(dim=1, descending=True, stable=True)[:, :n]
    active = acts.gather(1, order) != 0
    position = active.nonzero()[:, 0]
    concept = order[active]
    table = pd.DataFrame({"sample": sample, "position": position.numpy()})
    if isinstance(found, TextConcepts):
        table["token"] = pd.Series([found.tokens[place] for place in position.tolist()], dtype=object)
    else:
        patch = table["position"].astype("Int64") - found.n_prefix_tokens
        columns = found.geometry.grid[1] if found.geometry else 1
        patch = patch.where(patch >= 0)
        table["row"], table["column"] = patch // columns, patch % columns
    table["concept"], table["activation"] = concept.numpy(), acts[position, concept].numpy()
    first = None if found.first_passes is None else found.first_passes.to_dense()[position, concept]
    table["pass"] = pd.array([None] * len(table) if first is None else first.tolist(), dtype="Int64")
    return table
