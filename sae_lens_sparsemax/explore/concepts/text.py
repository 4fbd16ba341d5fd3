"""The concepts of one text, token by token."""

from typing import Any, NamedTuple

import torch
from sae_lens import SAE

from sae_lens_sparsemax.models.at_hook import text_at_hook
from sae_lens_sparsemax.models.encoding import encode_tokens


class TextConcepts(NamedTuple):
    """What an SAE makes of one text."""

    token_ids: torch.Tensor
    """`(n_tokens,)`, with the token that the model puts before a text."""
    tokens: list[str]
    """Each token as it reads in the text; of a character that is cut into several, the first has it all."""
    feature_acts: torch.Tensor
    """`(n_tokens, d_sae)`; zero at tokens that the SAE was trained without."""
    is_read: torch.Tensor
    """`(n_tokens,)` bool: False for tokens that the SAE was trained without, see `TextAtHook.is_read`."""


@torch.no_grad()
def concepts_of_text(model: Any, sae: SAE[Any], text: str, *, max_tokens: int | None = None) -> TextConcepts:
    """Run one text through a language model and an SAE on it.

    Args:
        model: a hooked language model, as `load_language_model` gives it.
        sae: any SAELens SAE whose metadata name the hook.
        text: not empty.
        max_tokens: longer texts are refused; None for the context the SAE was trained on.

    Raises:
        ValueError: empty or too long text, no such hook, or another width.
    """
    if not text.strip():
        raise ValueError("The text is empty.")
    at_hook = text_at_hook(model, sae)
    limit = max_tokens or sae.cfg.metadata.context_size
    tokens = at_hook.tokens(text)[None]
    if limit and tokens.shape[1] > limit:
        raise ValueError(f"The text has {tokens.shape[1]} tokens, more than the {limit} that the SAE was trained on.")
    activations = at_hook.activations(tokens)
    is_read = at_hook.is_read(tokens, activations)[0].cpu()
    token_ids = tokens[0].cpu()
    acts = encode_tokens(sae, activations[0]) * is_read[:, None]
    return TextConcepts(token_ids, at_hook.token_texts(token_ids.tolist()), acts, is_read)
