"""What the weights alone say of concepts: which point the same way, and the tokens that each promotes and suppresses.

Tokens are those of a decoder row read through the model's unembedding.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm.auto import tqdm

from sae_lens_sparsemax.explore.cofiring import Neighbours
from sae_lens_sparsemax.models.final_norm import before_norm

# Concepts at a time.
_BLOCK = 256
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "ln_final", "norm_f")


@torch.no_grad()
def nearest_concepts(rows: torch.Tensor, k: int, *, progress: bool = True) -> Neighbours:
    """The k concepts whose decoder rows have the highest cosine with that of each concept.

    Args:
        rows: Decoder, shape (d_sae, d_in). A row of zeros is near nothing.
        k: At most d_sae - 1.
        progress: Whether to show a progress bar.
    """
    norms = rows.norm(dim=-1, keepdim=True)
    unit = rows / norms.clamp(min=torch.finfo(rows.dtype).tiny)
    zero = norms[:, 0] == 0
    k = min(k, len(rows) - 1)
    concept = torch.full((len(rows), k), -1, dtype=torch.int64)
    value = torch.zeros(len(rows), k)
    for first in tqdm(range(0, len(rows), _BLOCK), desc="Similar concepts", disable=not progress, leave=False):
        cosine = unit[first : first + _BLOCK] @ unit.T
        own = torch.arange(len(cosine))
        cosine[own, own + first] = -torch.inf
        cosine[:, zero] = -torch.inf
        best = cosine.topk(k, dim=-1)
        usable = best.values.isfinite() & ~zero[first : first + _BLOCK, None]
        concept[first : first + _BLOCK] = torch.where(usable, best.indices, -1).cpu()
        value[first : first + _BLOCK] = torch.where(usable, best.values.clamp(-1, 1), 0).cpu()
    return Neighbours(concept, value)


class TokenLogits(NamedTuple):
    """The tokens whose logits change most along each concept's decoder row."""

    promoted: torch.Tensor
    """Token ids, shape (d_sae, k), most promoted first."""
    promoted_by: torch.Tensor
    """Change of their logits, relative to the mean over the vocabulary, shape (d_sae, k)."""
    suppressed: torch.Tensor
    """Token ids, shape (d_sae, k), most suppressed first."""
    suppressed_by: torch.Tensor
    """Change of their logits, shape (d_sae, k)."""


@torch.no_grad()
def unembedding(model: Any, hook_name: str, d_in: int) -> torch.Tensor | None:
    """What maps a direction of the residual stream to logits through the final norm, see `before_norm`.

    Args:
        model: A hooked language model as `load_language_model` gives it.
        hook_name: Where the SAE is.
        d_in: Its width.

    Returns:
        Shape (d_in, n_tokens), float32; None if the SAE does not write to the residual stream, or the model's
        unembedding is not found.
    """
    if hook_name.rsplit(".", 1)[-1] in ("hook_z", "hook_q", "hook_k", "hook_v", "hook_pre", "hook_post"):
        return None
    if isinstance(getattr(model, "cfg", None), object) and hasattr(model, "unembed") and hasattr(model.unembed, "W_U"):
        matrix = model.unembed.W_U.detach().float()
        norm = getattr(model, "ln_final", None)
    else:
        hf_model = getattr(model, "original_model", getattr(model, "model", model))
        head = hf_model.get_output_embeddings() if hasattr(hf_model, "get_output_embeddings") else None
        if head is None:
            return None
        matrix = head.weight.detach().float().T
        norm = _final_norm(hf_model)
    if matrix.shape[0] != d_in:
        return None
    return matrix if norm is None else before_norm(norm, matrix)


@torch.no_grad()
def token_logits(rows: torch.Tensor, matrix: torch.Tensor, k: int, *, progress: bool = True) -> TokenLogits:
    """The k tokens promoted and suppressed most by each decoder row.

    Args:
        rows: Decoder, shape (d_sae, d_in).
        matrix: From `unembedding`, shape (d_in, n_tokens).
        k: Tokens of each kind.
        progress: Whether to show a progress bar.
    """
    # Small results kept between large ones that are freed hold on to the memory of these: gigabytes at 49,152 rows.
    shape = (len(rows), min(k, matrix.shape[1]))
    promoted, suppressed = torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.int64)
    found = TokenLogits(promoted, torch.empty(shape), suppressed, torch.empty(shape))
    for first in tqdm(range(0, len(rows), _BLOCK), desc="Logits", disable=not progress, leave=False):
        logits = rows[first : first + _BLOCK] @ matrix
        logits -= logits.mean(-1, keepdim=True)
        high, low = logits.topk(shape[1], dim=-1), logits.topk(shape[1], dim=-1, largest=False)
        for kept, new in zip(found, (high.indices, high.values, low.indices, low.values), strict=True):
            kept[first : first + _BLOCK] = new.cpu()
    return found


def _final_norm(hf_model: Any) -> nn.Module | None:
    """The norm before the unembedding, by the names that transformers uses."""
    base = getattr(hf_model, getattr(hf_model, "base_model_prefix", ""), hf_model)
    for owner in (base, getattr(base, "decoder", None)):
        for name in _FINAL_NORMS:
            if isinstance(found := getattr(owner, name, None), nn.Module):
                return found
    return None
