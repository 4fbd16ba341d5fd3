"""The SAE as its equations are written, for comparison: the same parameters, everything dense, sparsemax by sorting."""

from __future__ import annotations

import torch
from typing_extensions import override

from sae_lens_sparsemax.sae.dictionaries import CrossAttentionDictionary
from sae_lens_sparsemax.sae.queries import split_norm
from sae_lens_sparsemax.sae.training import SparsemaxTrainingSAE


class NaiveTrainingSAE(SparsemaxTrainingSAE):
    """Eq. 3 literally: keys C·W_k and values C·W_v are formed, scores ranked in full, gradients left to autograd."""

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        own = self.dictionary
        assert isinstance(own, CrossAttentionDictionary)
        query, factor = split_norm(self.process_sae_in(x), self.cfg.unit_norm_query)
        if own.W_q is not None:
            query = query @ own.projection(own.W_q, query.dtype)
        scores = query @ (own.concepts @ own.projection(own.W_k, query.dtype)).T
        probabilities = sparsemax_by_sorting(self.cfg.gate_scale * scores)
        acts = probabilities if self.cfg.activations == "probabilities" else scores * (probabilities > 0)
        return acts * factor, scores

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        own = self.dictionary
        assert isinstance(own, CrossAttentionDictionary)
        return feature_acts @ (own.concepts @ own.value_map(feature_acts.dtype)) + self.b_dec

    @override
    def _can_run_sparse(self, x: torch.Tensor) -> bool:
        return False


def sparsemax_by_sorting(z: torch.Tensor) -> torch.Tensor:
    """(N, M) sparsemax of each row by a full sort (Martins & Astudillo 2016, Algorithm 1), through autograd."""
    rank = torch.arange(1, z.shape[-1] + 1, dtype=z.dtype, device=z.device)
    ranked = z.sort(-1, descending=True).values
    sums = ranked.cumsum(-1)
    count = (ranked + (1 - sums) / rank > 0).sum(-1, keepdim=True)
    return torch.clamp(z - (sums.gather(1, count - 1) - 1) / count, min=0)
