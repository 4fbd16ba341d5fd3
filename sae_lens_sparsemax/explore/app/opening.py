"""From the folder of an SAE to a session: the model its metadata name, and words for CLIP to choose from."""

from sae_lens_sparsemax.data.class_names import known_words, read_words, shipped_words
from sae_lens_sparsemax.explore.app.session import ImageSession, Session, TextSession
from sae_lens_sparsemax.explore.settings import AppSettings
from sae_lens_sparsemax.models.at_hook import load_sae, open_text
from sae_lens_sparsemax.models.vision_at_hook import VISION_MODEL_CLASS, open_vision


def open_session(source: str, settings: AppSettings | None = None) -> Session:
    """Load an SAE and the model it was trained on.

    Args:
        source: folder of an SAE, or `user/repository:id` on the hub.
        settings: what replaces the model in the SAE's metadata, and the words for CLIP to choose from.

    Raises:
        ValueError: the SAE or the model cannot be loaded or do not fit, or there are words for a model without any use
            for them.
    """
    settings = settings or AppSettings()
    words, device = settings.words, settings.device
    sae = load_sae(source, device)
    meta = sae.cfg.metadata
    model_class_name = settings.model_class_name or meta.model_class_name
    if model_class_name != VISION_MODEL_CLASS:
        if words is not None:
            raise ValueError("Words are for CLIP to choose from; a language model chooses among its tokens.")
        return TextSession(open_text(sae, settings.model_name, model_class_name, device=device).model, sae)
    name = settings.model_name or meta.model_name
    vit = open_vision(sae, name, device=device).model
    if vit.tokenizer is None:
        if words is not None:
            raise ValueError(f"Words need a model with a text tower and its tokenizer; {name!r} has none.")
        return ImageSession(vit, sae)
    return ImageSession(vit, sae, known_words(vit.tokenizer, read_words(words) if words else shipped_words()))
