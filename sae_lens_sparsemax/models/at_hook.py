"""The language model that an SAE reads at its hook: what every command opens, once.

The counterpart for images is `models.vision_at_hook`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name

from sae_lens_sparsemax.models.encoding import hook_name_of
from sae_lens_sparsemax.models.language_models import (
    check_hook_width,
    excluded_token_ids,
    hook_width,
    keep_mask,
    load_language_model,
    require_positions,
    resolve_hook_name,
)
from sae_lens_sparsemax.models.splice import Edit, Hook, edit_hook
from sae_lens_sparsemax.settings.sentences import must_be

logger = logging.getLogger(__name__)

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character takes four bytes at most, and a token that begins with the end of one may hold more.
_MOST_PARTS = 6


@dataclass(frozen=True)
class TextAtHook:
    """A language model where an SAE reads it. `open_text` loads one; `text_at_hook` takes a loaded model."""

    sae: SAE[Any]
    """Any SAELens SAE."""
    model: Any
    """Its language model, of any class that `load_language_model` knows."""
    hook_name: str
    """Where the SAE reads and writes, as the model caches it."""
    excluded: list[int]
    """Ids of the special tokens that the SAE was trained without."""
    max_norm: float = math.inf
    """The SAE was trained without activations of a larger norm."""
    _texts: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the model takes its tokens."""
        return next(self.model.parameters()).device

    @property
    def seqpos(self) -> slice:
        """The positions of a context that the SAE was trained on."""
        return slice(*(self.sae.cfg.metadata.seqpos_slice or (None,)))

    @property
    def prepends_bos(self) -> bool:
        """Whether a context begins with the token for that."""
        prepend_bos = self.sae.cfg.metadata.prepend_bos
        return True if prepend_bos is None else prepend_bos  # what SAELens trains with unless told otherwise

    def tokens(self, text: str) -> torch.Tensor:
        """Token ids of a text as a context of its own, shape (n_tokens,), on the model's device.

        Raises:
            ValueError: it holds half a character, as text that was no UTF-8 does when it was read all the same.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise must_be("the text", "of whole characters", text[error.start : error.end]) from error
        ids = self.model.to_tokens(text, prepend_bos=False, truncate=False, move_to_device=False)[0]
        bos = self.model.tokenizer.bos_token_id
        if self.prepends_bos and bos is not None:
            ids = torch.cat([ids.new_tensor([bos]), ids])
        return ids.to(self.device)

    @torch.no_grad()
    def activations(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the SAE reads of token ids of shape (batch, context): (batch, context, d_in), heads side by side."""
        _, cache = self.model.run_with_cache(
            tokens.to(self.device),
            names_filter=[self.hook_name],
            stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(self.hook_name),
            prepend_bos=False,
        )
        acts = cache[self.hook_name]
        head = self.sae.cfg.metadata.hook_head_index
        return (acts if head is None else acts[:, :, head]).flatten(2).float()

    def is_read(self, tokens: torch.Tensor, activations: torch.Tensor | None = None) -> torch.Tensor:
        """Which positions the SAE was trained on; the others are neither replaced nor measured nor shown.

        Args:
            tokens: whole contexts of token ids, shape (batch, context).
            activations: what `activations` gives for them; without, no norm is checked.

        Returns:
            Bool, shape (batch, context): False where `left_out` has a reason.
        """
        return ~torch.stack(list(self.left_out(tokens, activations).values())).any(0)

    def left_out(self, tokens: torch.Tensor, activations: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The positions that the SAE was not trained on, by why: bool, shape (batch, context); see `is_read`."""
        outside = torch.ones_like(tokens, dtype=torch.bool)
        outside[:, self.seqpos] = False
        found = {
            f"positions outside seqpos_slice {self.sae.cfg.metadata.seqpos_slice}": outside,
            "special tokens": ~keep_mask(tokens, self.excluded),
        }
        if activations is not None and self.max_norm < math.inf:
            found[f"activations of a norm above {self.max_norm:.4g}"] = ~(activations.norm(dim=-1) <= self.max_norm).to(
                tokens.device
            )
        return found

    def hooks(self, edit: Edit, mask: torch.Tensor | None = None) -> list[tuple[str | Callable[..., Any], Hook]]:
        """What `run_with_hooks` takes so that the model goes on with an edit of what the SAE reads.

        Args:
            edit: what to do, see `models.splice`.
            mask: the positions to replace, as `is_read` gives them; None for all of `seqpos`, whatever stands there.
        """
        positions, max_norm = (self.seqpos, math.inf) if mask is None else (mask, self.max_norm)
        return [(self.hook_name, edit_hook(edit, positions, max_norm, self.sae.cfg.metadata.hook_head_index))]

    def token_text(self, token: int) -> str:
        """A token as it reads in a text, with the space before it where there is one."""
        if token not in self._texts:
            text = self.model.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            piece = self.model.tokenizer.convert_ids_to_tokens(token)
            # SentencePiece tokenizers drop the space of a token that is decoded by itself.
            has_space = isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ")
            self._texts[token] = " " + text if has_space else text
        return self._texts[token]

    def token_texts(self, tokens: list[int]) -> list[str]:
        """Each token of a context as it reads there; of a character cut into several, the first has it all."""
        texts = [self.token_text(token) for token in tokens]
        for place, text in enumerate(texts):
            if _BROKEN not in text:
                continue
            for last in range(place + 1, min(place + _MOST_PARTS, len(tokens))):
                whole = self.model.tokenizer.decode(tokens[place : last + 1], clean_up_tokenization_spaces=False)
                if _BROKEN not in whole:
                    texts[place : last + 1] = [whole, *[""] * (last - place)]
                    break
        return texts

    def store(self, dataset: Any, context_size: int, batch_size: int, device: str) -> ActivationsStore:
        """SAELens's activations store over a data set, its documents joined to contexts as in the SAE's training."""
        meta = self.sae.cfg.metadata
        require_positions(self.model, context_size)
        if meta.disable_concat_sequences:
            logger.warning("Documents are cut to their first %d tokens, as in the SAE's training.", context_size)
        store = ActivationsStore.from_sae(
            self.model,
            self.sae,
            dataset=dataset,
            context_size=context_size,
            store_batch_size_prompts=batch_size,
            device=device,
            disable_concat_sequences=bool(meta.disable_concat_sequences),
            sequence_separator_token=meta.get("sequence_separator_token", "bos"),
        )
        if self.excluded:
            store.exclude_special_tokens = torch.tensor(self.excluded, device=device)
        return store


def text_at_hook(
    model: Any, sae: SAE[Any], *, hook_name: str | None = None, max_norm: float | None = None
) -> TextAtHook:
    """A loaded language model at the hook of an SAE.

    What SAELens reads from the metadata is completed there: the hook, by the name that the model caches it under, and
    `prepend_bos`.

    Args:
        model: as `load_language_model` gives it.
        sae: any SAELens SAE.
        hook_name: replaces the hook in its metadata.
        max_norm: replaces the largest norm in its metadata.

    Raises:
        ValueError: no hook is known, the SAE is of no kind that is inspected, or the model has no such hook.
    """
    meta = sae.cfg.metadata
    name = resolve_hook_name(model, hook_name_of(sae, hook_name))
    at_hook = TextAtHook(
        sae,
        model,
        name,
        excluded_token_ids(meta.exclude_special_tokens, model),
        max_norm or meta.max_norm or math.inf,
    )
    meta.hook_name, meta.prepend_bos = name, at_hook.prepends_bos
    return at_hook


def open_text(
    sae: SAE[Any],
    model_name: str | None = None,
    model_class_name: str | None = None,
    *,
    hook_name: str | None = None,
    max_norm: float | None = None,
    device: str = "cpu",
    load: Callable[..., Any] = load_language_model,
) -> TextAtHook:
    """The language model that an SAE was trained on, at its hook.

    Args:
        sae: any SAELens SAE.
        model_name, model_class_name, hook_name, max_norm: replace what its metadata say.
        device: where the model runs.
        load: called as `load_language_model` is; see `load_each_once`.

    Raises:
        ValueError: the metadata lack something that is not given, the SAE is of no kind that is inspected, the model
            cannot be loaded, it has no such hook, or its width there is not the SAE's.
    """
    meta = sae.cfg.metadata
    name = model_name or meta.model_name
    if not name:
        raise ValueError("The SAE's metadata have no 'model_name'; give --model_name.")
    hook_name = hook_name_of(sae, hook_name)
    # What was given to another model's loader says nothing about this one.
    kwargs = meta.model_from_pretrained_kwargs if name == meta.model_name else None
    model = load(model_class_name or meta.model_class_name or "HookedTransformer", name, hook_name, device, kwargs)
    at_hook = text_at_hook(model, sae, hook_name=hook_name, max_norm=max_norm)
    check_hook_width(sae.cfg.d_in, hook_width(model, at_hook.hook_name, meta.hook_head_index), at_hook.hook_name)
    return at_hook
