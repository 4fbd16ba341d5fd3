"""What the decoder alone says of the concepts: their norms, and which of them point the same way."""

from typing import Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.explore.cofiring import Neighbours

_BLOCK = 512


@torch.no_grad()
def decoder_rows(sae: SAE[Any]) -> torch.Tensor:
    """The decoder of any SAE as float32, shape (d_sae, d_in), on its device."""
    return sae.W_dec.detach().float()


@torch.no_grad()
def nearest_concepts(rows: torch.Tensor, k: int, *, progress: bool = True) -> Neighbours:
    """
    The k concepts whose decoder rows have the highest cosine with that of each concept.

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
