"""What a model says with concepts changed, beside what it says without: for app and notebooks alike.

The change itself is `models.splice.change_concepts`: x + decode(f') - decode(f) at every token that the SAE reads.
"""

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.load_model import HookedProxyLM
from transformer_lens import HookedTransformer, TransformerLensKeyValueCache
from transformers import DynamicCache

from sae_lens_sparsemax.models.at_hook import TextAtHook
from sae_lens_sparsemax.models.language_models import NO_NEXT_TOKENS, predicts_next_tokens
from sae_lens_sparsemax.models.splice import Change, Edit, change_concepts
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook
from sae_lens_sparsemax.settings.sentences import must_be

_SEEDS = 2**63


class SteeredText(NamedTuple):
    """How a text goes on, without and with a change."""

    prompt: str
    """What was given."""
    before: str
    """How the model goes on as it is."""
    after: str
    """How it goes on with the change."""


class BeforeAfter(NamedTuple):
    """Probabilities of outcomes, `(n_outcomes,)` float32 on the CPU."""

    before: torch.Tensor
    after: torch.Tensor


def as_changes(changes: Mapping[int, Change | float]) -> dict[int, Change]:
    """Changes by concept; a number is what is added to the activation at every token.

    Raises:
        ValueError: they are no mapping from whole numbers to numbers or changes.
    """
    if not isinstance(changes, Mapping):
        raise must_be("changes", "a mapping from concepts to changes", changes)
    done = {}
    for concept, change in changes.items():
        c = as_whole(concept, "a concept in changes")
        try:
            done[c] = Change(*map(float, change)) if isinstance(change, Change) else Change(add=float(change))
        except (TypeError, ValueError) as error:
            raise must_be(f"the change of concept {c}", "a number or a Change of numbers", change) from error
    return done


def as_whole(value: Any, name: str) -> int:
    """A whole number of any type, numpy's and torch's too.

    Raises:
        ValueError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise must_be(name, "a whole number", value) from error


@torch.no_grad()
def class_probabilities(
    at_hook: VisionAtHook, pixel_values: torch.Tensor, class_embeds: torch.Tensor, edit: Edit | None
) -> BeforeAfter:
    """What CLIP or SigLIP takes one image for, without and with an edit (None changes nothing).

    Args:
        at_hook: the model at the SAE's hook.
        pixel_values: `(1, channel, height, width)`.
        class_embeds: `(n_classes, d_embed)`, as `evaluation.naming.embed_words` gives them.
        edit: see `models.splice`.

    Raises:
        ValueError: the outcomes are not finite.
    """

    def probabilities(embeds: torch.Tensor) -> torch.Tensor:
        logits = at_hook.model.zero_shot_logits(embeds, class_embeds.to(embeds))
        return logits[0].float().softmax(-1).cpu()

    before = probabilities(at_hook.embeddings(pixel_values))
    return _finite(before, before if edit is None else probabilities(at_hook.embeddings(pixel_values, edit)))


@torch.no_grad()
def next_token_probabilities(
    at_hook: TextAtHook, tokens: torch.Tensor, is_read: torch.Tensor, position: int, edit: Edit | None
) -> BeforeAfter:
    """What a language model expects after a position, without and with an edit (None changes nothing).

    Args:
        at_hook: the model at the SAE's hook.
        tokens: token ids, `(1, n_tokens)`.
        is_read: bool, `(1, n_tokens)`: where to edit.
        position: after which token.
        edit: see `models.splice`.

    Raises:
        ValueError: the outcomes are not finite.
    """
    tokens = tokens.to(at_hook.device)
    before = after = at_hook.model.run_with_hooks(tokens, return_type="logits")
    if edit is not None:
        after = at_hook.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=at_hook.hooks(edit, is_read))
    return _finite(*(logits[0, position].float().softmax(-1).cpu() for logits in (before, after)))


@torch.no_grad()
def steered_text(
    at_hook: TextAtHook,
    prompt: str,
    changes: Mapping[int, Change],
    *,
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    before_each: Callable[[], None] = lambda: None,
) -> SteeredText:
    """Let a model go on with a text without and with concepts changed, at every token of the text and of what follows.

    Both texts are drawn with the same random numbers, so that they differ by the change alone: a change of nothing
    gives the same text twice.

    Args:
        at_hook: the model at the SAE's hook.
        prompt: what to go on with.
        changes: from concept to change.
        max_new_tokens: at most; a text ends earlier where the model says so.
        temperature: of the sampling; 0 takes the likeliest token each time.
        seed: of the sampling.
        before_each: called before each token; what it raises ends the work.

    Raises:
        ValueError: an argument is out of its range, the text does not fit into the model's context, the model does not
            predict next tokens, or goes on without the change, as a bridge that had an SAE attached does.
    """
    if not prompt.strip():
        raise must_be("prompt", "a text that is not empty", prompt)
    if as_whole(max_new_tokens, "max_new_tokens") < 1:
        raise must_be("max_new_tokens", "at least 1", max_new_tokens)
    if isinstance(temperature, Real) and not isinstance(temperature, int):
        temperature = float(temperature)  # numpy's numbers compare in their own precision
    if not (isinstance(temperature, float | int) and 0 <= temperature <= sys.float_info.max):
        raise must_be("temperature", "0 or a positive number", temperature)
    if not 0 <= as_whole(seed, "seed") < _SEEDS:
        raise must_be("seed", f"between 0 and {_SEEDS - 1}", seed)
    if not predicts_next_tokens(at_hook.model):
        raise ValueError(f"steer needs a model that goes on with a text; {NO_NEXT_TOKENS}.")
    edit, n_edits = change_concepts(at_hook.sae, changes), 0
    row, generator = at_hook.tokens(prompt)[None], torch.Generator().manual_seed(seed)
    tokens, n_prompt = row.expand(2, -1), row.shape[1]
    if (room := _context_of(at_hook.model)) is not None and n_prompt + max_new_tokens > room:
        condition = f"at most {max(0, room - n_prompt)}, as the model takes {room} tokens and the prompt has {n_prompt}"
        raise must_be("max_new_tokens", condition, max_new_tokens)

    def counted(activations: torch.Tensor) -> torch.Tensor:
        nonlocal n_edits
        n_edits += 1
        return edit(activations)

    next_logits = _continued(at_hook.model)
    for _ in range(max_new_tokens):
        before_each()
        mask = at_hook.is_read(tokens)
        mask[0] = False  # the first text is the one without
        logits = next_logits(tokens, lambda new, mask=mask: at_hook.hooks(counted, mask[:, -new:]))
        if not n_edits:
            raise ValueError(
                f"model must be one whose hook {at_hook.hook_name!r} fires, got one where it does not; load it anew "
                "if an SAE was attached to it."
            )
        _finite(*logits)
        if temperature:
            # Relative to the likeliest, so that however cold it is this one alone is left.
            logits = (logits - logits.amax(-1, keepdim=True)).double() / temperature
            # Gumbel's noise makes the largest one a sample of the softmax.
            logits = logits - torch.rand(logits.shape[1], generator=generator).log().neg().log()
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True).to(tokens)], 1)
        if all(at_hook.model.tokenizer.eos_token_id in row[n_prompt:].tolist() for row in tokens):
            break
    return SteeredText(prompt, *(_continuation(at_hook, row[n_prompt:].tolist()) for row in tokens))


def _continued(model: Any) -> Callable[[torch.Tensor, Callable[[int], Any]], torch.Tensor]:
    """A function of two growing texts, `(2, n_tokens)`, to the logits after them, `(2, n_vocab)`.

    Its second argument gives the hooks for so many of the last tokens. Keys and values of those before are kept where
    the model's class has a place for them; elsewhere all tokens are read again.
    """
    n_read, kept = 0, {}
    if isinstance(model, HookedTransformer):
        kept = {"past_kv_cache": TransformerLensKeyValueCache.init_cache(model.cfg, next(model.parameters()).device, 2)}
    elif isinstance(model, SAETransformerBridge | HookedProxyLM):
        kept = {"past_key_values": DynamicCache(config=_hf_model(model).config), "use_cache": True}

    def next_logits(tokens: torch.Tensor, hooks: Callable[[int], Any]) -> torch.Tensor:
        nonlocal n_read
        new = tokens[:, n_read:]
        with model.hooks(fwd_hooks=hooks(new.shape[1])):
            # SAELens's proxy passes no cache on to the model that it has hooked.
            if isinstance(model, HookedProxyLM):
                logits = _hf_model(model)(new, **kept).logits
            else:
                logits = model(new, return_type="logits", **kept)
        n_read = tokens.shape[1] if kept else 0
        return logits[:, -1].float().cpu()

    return next_logits


def _hf_model(model: Any) -> Any:
    return getattr(model, "original_model", getattr(model, "model", model))


def _continuation(at_hook: TextAtHook, tokens: Sequence[int]) -> str:
    end = at_hook.model.tokenizer.eos_token_id
    return "".join(at_hook.token_texts(list(tokens[: tokens.index(end)] if end in tokens else tokens)))


def _context_of(model: Any) -> int | None:
    """Tokens that a model takes at most; None where it does not say."""
    config = getattr(model, "cfg", None) or _hf_model(model).config
    return getattr(config, "n_ctx", None) or getattr(config, "max_position_embeddings", None)


def _finite(before: torch.Tensor, after: torch.Tensor) -> BeforeAfter:
    if not (before.isfinite().all() and after.isfinite().all()):
        raise ValueError("changes must be small enough for the model to compute with; its outcomes are not finite.")
    return BeforeAfter(before, after)
