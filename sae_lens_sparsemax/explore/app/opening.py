"""From the folder of an SAE to a session: the model its metadata name, and words for CLIP to choose from."""

from pathlib import Path

from sae_lens_sparsemax.data.words import known_words, read_words, shipped_words
from sae_lens_sparsemax.evaluation.harness import load_sae
from sae_lens_sparsemax.explore.app.session import ImageSession, Session, TextSession
from sae_lens_sparsemax.models.encoding import hook_name_of
from sae_lens_sparsemax.models.language_models import check_width, hook_width, load_language_model
from sae_lens_sparsemax.models.language_models import resolve_hook_name as resolve_text_hook
from sae_lens_sparsemax.models.vision_at_hook import VISION_MODEL_CLASS, open_vision


def open_session(
    source: str,
    *,
    model: str | None = None,
    model_class: str | None = None,
    words: str | Path | None = None,
    device: str = "cpu",
) -> Session:
    """Load an SAE and the model it was trained on.

    Args:
        source: folder of an SAE, or `user/repository:id` on the hub.
        model: replaces the model in the SAE's metadata.
        model_class: replaces the class there; `HookedViT` for images.
        words: text file with one class a line, for CLIP to choose from; None for the names that the package carries.
        device: where model and SAE run.

    Raises:
        ValueError: the SAE or the model cannot be loaded or do not fit, or there are words for a model without any use
            for them.
    """
    sae = load_sae(source, device)
    meta = sae.cfg.metadata
    hook_name = hook_name_of(sae)
    name, kind = model or meta.model_name, model_class or meta.model_class_name or "HookedTransformer"
    if not name:
        raise ValueError("The SAE's metadata have no 'model_name'; give --model.")
    if kind != VISION_MODEL_CLASS:
        if words is not None:
            raise ValueError("Words are for CLIP to choose from; a language model chooses among its tokens.")
        language_model = load_language_model(kind, name, hook_name, device, meta.model_from_pretrained_kwargs)
        hook = resolve_text_hook(language_model, hook_name)
        check_width(sae.cfg.d_in, hook_width(language_model, hook, meta.hook_head_index), hook)
        return TextSession(language_model, sae)
    vit = open_vision(sae, name, device=device).model
    if vit.tokenizer is None:
        if words is not None:
            raise ValueError(f"Words need a model with a text tower and its tokenizer; {name!r} has none.")
        return ImageSession(vit, sae)
    return ImageSession(vit, sae, known_words(vit.tokenizer, read_words(words) if words else shipped_words()))
