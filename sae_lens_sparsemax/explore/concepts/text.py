"""The concepts of one text, token by token."""

from typing import Any, NamedTuple

import torch
from sae_lens import SAE

from sae_lens_sparsemax.models.encoding import encode_tokens, hook_name_of
from sae_lens_sparsemax.models.language_models import excluded_token_ids, resolve_hook_name


class TextConcepts(NamedTuple):
    """What an SAE makes of one text."""

    token_ids: torch.Tensor
    """`(n_tokens,)`, with the token that the model puts before a text."""
    tokens: list[str]
    """Each token as text; a character that is split over several tokens shows as U+FFFD."""
    feature_acts: torch.Tensor
    """`(n_tokens, d_sae)`; zero at tokens that the SAE was trained without."""
    is_read: torch.Tensor
    """`(n_tokens,)` bool: False for tokens that the SAE was trained without."""


@torch.no_grad()
def concepts_of_text(model: Any, sae: SAE[Any], text: str, *, max_tokens: int | None = None) -> TextConcepts:
    """Run one text through a language model and an SAE on it.

    Args:
        model: a hooked language model, as `training.models.load_language_model` gives it.
        sae: any SAELens SAE whose metadata name the hook.
        text: not empty.
        max_tokens: longer texts are refused; None for the context the SAE was trained on.

    Raises:
        ValueError: empty or too long text, no such hook, or another width.
    """
    if not text.strip():
        raise ValueError("The text is empty.")
    meta = sae.cfg.metadata
    hook_name = resolve_hook_name(model, hook_name_of(sae))
    limit = max_tokens or meta.context_size
    # What SAELens trains with unless told otherwise.
    token_ids = model.to_tokens(text, prepend_bos=True if meta.prepend_bos is None else meta.prepend_bos)
    if limit and token_ids.shape[1] > limit:
        raise ValueError(
            f"The text has {token_ids.shape[1]} tokens, more than the {limit} that the SAE was trained on."
        )
    _, cache = model.run_with_cache(token_ids, names_filter=[hook_name])
    excluded = torch.tensor(excluded_token_ids(meta.exclude_special_tokens, model), dtype=torch.long)
    is_read = ~torch.isin(token_ids[0].cpu(), excluded)
    acts = encode_tokens(sae, cache[hook_name][0]) * is_read[:, None]
    return TextConcepts(token_ids[0].cpu(), token_texts(model, token_ids[0]), acts, is_read)


def token_texts(model: Any, token_ids: torch.Tensor) -> list[str]:
    """Each token as text, by itself, as the model's tokenizer decodes it."""
    return [model.tokenizer.decode([int(token)], clean_up_tokenization_spaces=False) for token in token_ids]
