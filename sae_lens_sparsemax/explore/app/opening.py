"""What the app opens with: pages of the SAE, examples in place, and the classes that its model has learnt."""

import base64
import io
import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from PIL import Image
from sae_lens import SAE

from sae_lens_sparsemax.data.class_names import known_words, require_known, shipped_words
from sae_lens_sparsemax.data.drawings import CLASSES, drawing
from sae_lens_sparsemax.data.image_loader import decode_image
from sae_lens_sparsemax.data.images import class_names_of, image_column_of, label_column_of, load_image_dataset
from sae_lens_sparsemax.data.loading import is_local_data
from sae_lens_sparsemax.data.quickstart import QUICKSTART
from sae_lens_sparsemax.explore.explored import Explored, find_explored, find_explored_of
from sae_lens_sparsemax.models.at_hook import TextAtHook
from sae_lens_sparsemax.settings.sentences import must_be

logger = logging.getLogger(__name__)
MOST_CLASSES = 200
"""That a person lists."""
_LONGEST_CLASS = 100
_TEXTS = (
    "The Congress of the United States shall have power to",
    "She put the letter back into its envelope and looked out at the",
)
_N_IMAGES = 3
_DRAWINGS = (7, 12, 46)  # a red moon, an orange cross, a blue heart
_SIDE = 448


class Given(NamedTuple):
    """An input, as `Session.inspect` takes it, and what to call it."""

    name: str
    given: str


def as_opening(
    examples: Sequence[Given], classes: Sequence[str] = (), *, classifies: bool = False, steers: bool = False
) -> dict[str, Any]:
    """See `Session.opening`; a list of classes too long to edit is told by its length alone."""
    return {
        "examples": [each._asdict() for each in examples],
        "classes": list(classes) if len(classes) <= MOST_CLASSES else [],
        "n_classes": len(classes),
        "classifies": classifies,
        "steers": steers,
    }


def open_pages(source: str, sae: SAE[Any], folder: str | None) -> Explored | None:
    """The pages of an SAE, in the folder given or in its own.

    Returns:
        None where there are none, or those in its own folder are of another SAE.

    Raises:
        ValueError: the folder given holds no pages, or none of this SAE; or pages are damaged.
    """
    found = find_explored(folder or source)
    if found is None:
        if folder is not None:
            raise must_be("pages", "a folder that explore wrote", folder)
        return None
    mine = find_explored_of(found, sae)
    if mine is None and folder is not None:
        raise must_be("pages", "a folder that explore wrote of this SAE", folder)
    if mine is None:
        logger.warning("The pages in %s are of another SAE and are not shown; run explore again.", found.folder)
    return mine


def take_outliers(sae: SAE[Any], pages: Explored | None) -> None:
    """Leave out the tokens of huge norm that `explore` found to be outliers, where the training has set no limit."""
    if pages is not None and sae.cfg.metadata.max_norm is None:
        sae.cfg.metadata.max_norm = pages.summary.get("max_norm")  # None for images


def opening_texts(at_hook: TextAtHook) -> list[Given]:
    """Texts to begin with, as far as they fit into the contexts that the SAE was trained on."""
    room = at_hook.sae.cfg.metadata.context_size
    fitting = [text for text in _TEXTS if not room or len(at_hook.tokens(text)) <= room]
    return [Given(text, text) for text in fitting or [_TEXTS[0].split()[0]]]


def opening_images(sae: SAE[Any], pages: Explored | None) -> list[Given]:
    """Images to begin with: those of the pages, or of the training if they are at hand, or drawings."""
    if pages is not None and pages.site["kind"] == "image" and pages.site["showcase"]:
        names = [f"{number}.jpg" for number in pages.site["showcase"][:_N_IMAGES]]
        # What is kept for the pages was made smaller and packed: the model sees it a little otherwise.
        return [
            Given(f"the pages' copy of {name}", _base64((pages.folder / "images" / name).read_bytes()))
            for name in names
        ]
    images, _ = _of_training(sae)
    given = []
    for number, image in enumerate(images or [drawing("validation", number)[0] for number in _DRAWINGS]):
        image.thumbnail((_SIDE, _SIDE))
        given.append(Given(f"example {number + 1}", _png(image)))
    return given


def offered_classes(tokenizer: Any, sae: SAE[Any], pages: Explored | None) -> list[str]:
    """Classes that a model knows, to choose from; none where it knows fewer than two of what an image may show."""
    try:
        known = known_words(tokenizer, known_classes(sae, pages))
    except ValueError:  # it knows none of them
        return []
    return known if len(known) > 1 else []


def known_classes(sae: SAE[Any], pages: Explored | None) -> list[str]:
    """What an image may show: the classes of the images that an SAE was explored or trained on or, where those are not
    at hand, all that the package carries."""
    if pages is not None and pages.site["classes"]:
        return pages.site["classes"]
    if QUICKSTART in (sae.cfg.metadata.model_name, sae.cfg.metadata.dataset_path):
        return CLASSES
    return _of_training(sae)[1] or shipped_words()


def checked_classes(tokenizer: Any, classes: list[str]) -> list[str]:
    """The classes that a person lists, each once.

    Raises:
        ValueError: they are too many or too long, or the model does not know one of them.
    """
    names = distinct_classes(classes)
    if len(names) > MOST_CLASSES:
        raise must_be("classes", f"from 1 to {MOST_CLASSES} names", len(names))
    if (long := next((name for name in names if len(name) > _LONGEST_CLASS), None)) is not None:
        raise must_be("a class", f"at most {_LONGEST_CLASS} characters", long)
    require_known(tokenizer, names)
    return names


def distinct_classes(classes: Sequence[str]) -> list[str]:
    """Names of classes, each once.

    Raises:
        ValueError: they are no list of names.
    """
    is_list = isinstance(classes, Iterable) and not isinstance(classes, str)
    listed: list[Any] = list(classes) if is_list else [None]
    if not all(isinstance(name, str) for name in listed):
        raise must_be("classes", "a list of names", classes)
    names = list(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if not names:
        raise must_be("classes", "at least one name", listed)
    return names


def _of_training(sae: SAE[Any]) -> tuple[list[Image.Image], list[str]]:
    """Images and classes of what an SAE was trained on, if it is on this machine: to open the app takes no network."""
    meta = sae.cfg.metadata
    path = meta.dataset_path
    if not path or path == QUICKSTART or not is_local_data(path):
        return [], []
    try:
        split, config = meta.dataset_split or "train", meta.dataset_config
        data = load_image_dataset(path, split=split, config=config, image_column=meta.image_column, streaming=True)
        column, labels = meta.image_column or image_column_of(data), label_column_of(data)
        images = [decode_image(row[column]) for row in itertools.islice(data, _N_IMAGES)]
        return images, [] if labels is None else class_names_of(data, labels)
    except ValueError as error:
        logger.info("The app opens with drawings, as the images of the training cannot be read: %s", error)
        return [], []


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return _base64(file.getvalue())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
