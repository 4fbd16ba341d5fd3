"""The sparsemax SAE for inference: two linear maps around the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from torch import nn
from typing_extensions import override

from sae_lens_sparsemax.attention.cross_attention import select
from sae_lens_sparsemax.attention.gate import support_activations
from sae_lens_sparsemax.attention.rows import weighted_rows
from sae_lens_sparsemax.attention.traceable import full_precision, is_traced
from sae_lens_sparsemax.files import save_atomically
from sae_lens_sparsemax.sae.config import SparsemaxSAEConfig, gate_of
from sae_lens_sparsemax.sae.encoding import (
    dense_activations,
    dense_scores,
    gate_scores,
    is_hooked,
    linear_decode,
    rounded,
)
from sae_lens_sparsemax.sae.folding import fold_checkpoint, refuse_W_dec_norm, refuse_whitened_norm
from sae_lens_sparsemax.sae.queries import checked_queries
from sae_lens_sparsemax.sae.weights import check_weights, is_training_checkpoint


class SparsemaxSAE(SAE[SparsemaxSAEConfig]):
    """A trained sparsemax SAE: f = ‖x‖ · a(z) on the support of the gate, x̂ = f W_dec + b_dec.

    With u = (x − b_dec)/‖x − b_dec‖ and z = u W_enc + b_enc; the support is that of sparsemax(g·z), or of another
    α-entmax, and a(z) is z or the probabilities, as the config says. `encode`
    returns dense activations and `decode` is linear in them, so hooks, steering and dashboards work as for any SAE.
    Training checkpoints load into this class too: their projections are folded into W_enc and W_dec.
    """

    b_enc: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Activations (..., d_sae) of inputs (..., d_in), dense; zero outside each token's support.

        Raises:
            ValueError: x holds NaN or infinity, or the scores do because weights do.
        """
        query, factor = checked_queries(self, x)
        if self._runs_unobserved(query):
            acts = dense_activations(
                query,
                self.W_enc.T.to(query.dtype),
                self.b_enc.to(query.dtype),
                **gate_of(self.cfg),
            )
        else:
            hidden_pre = self.hook_sae_acts_pre(dense_scores(query, self.W_enc, self.b_enc))
            acts = gate_scores(hidden_pre, self.cfg.gate, **gate_of(self.cfg))
        return self.hook_sae_acts_post(rounded(acts * factor, self.dtype))

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Reconstructions (..., d_in) of activations (..., d_sae): f W_dec + b_dec."""
        return self._finish(linear_decode(feature_acts, self.W_dec))

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions (..., d_in), without an N × d_sae matrix unless a hook, a gradient or the error term asks."""
        if not self._runs_unobserved(x) or is_hooked(self.hook_sae_acts_post) or self.use_error_term:
            return super().forward(x)
        query, factor = checked_queries(self, x)
        rows = query.reshape(-1, query.shape[-1])
        with full_precision(rows):
            keys, bias = self.W_enc.T.to(rows.dtype), self.b_enc.to(rows.dtype)
            found = select(rows, keys, bias, self.cfg.gate_scale, self.cfg.alpha)
            if found is None:
                return super().forward(x)
            support = found[0]
            acts = support_activations(support, self.cfg.activations == "probabilities")
            context = weighted_rows(support.crow, support.col, acts, self.W_dec.to(rows.dtype))
            context = context.reshape(query.shape)
        return self.hook_sae_output(self._finish(rounded(context * factor, self.dtype)))

    def _finish(self, sae_out: torch.Tensor) -> torch.Tensor:
        sae_out = self.hook_sae_recons(sae_out + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    def _runs_unobserved(self, x: torch.Tensor) -> bool:
        """Whether nobody needs the dense scores: no hook on them, no derivative through them, no ReLU of them."""
        if is_traced(x, *self.parameters()):
            return False
        needs_grad = torch.is_grad_enabled() and (x.requires_grad or self.W_enc.requires_grad)
        return self.cfg.gate == "sparsemax" and not needs_grad and not is_hooked(self.hook_sae_acts_pre)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Fold a training checkpoint's projections; refuse the weights of anything else.

        Raises:
            ValueError: tensors are missing, unknown, or of the wrong shape.
        """
        if is_training_checkpoint(state_dict):
            fold_checkpoint(state_dict)
        check_weights(state_dict, self)

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write the weights and the config; files already there are replaced only by complete ones."""
        return save_atomically(path, super().save_model)

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Take raw activations x in place of scaling_factor · x, exactly: the supports do not change."""
        if not self.cfg.unit_norm_query:
            super().fold_activation_norm_scaling_factor(scaling_factor)
            return
        # Scores see directions only, so the scale cancels; activations are then in units of the raw ‖x‖.
        self.b_dec.data /= scaling_factor
        self.cfg.normalize_activations = "none"

    @override
    def fold_activation_whitening(
        self, mean: torch.Tensor, whitening_matrix: torch.Tensor, unwhitening_matrix: torch.Tensor
    ) -> None:
        """Take raw activations in place of whitened ones; exact for raw queries, refused for unit-norm ones.

        Raises:
            NotImplementedError: the query is x/‖x‖ of a whitened x, which folded weights cannot express.
        """
        refuse_whitened_norm(self.cfg.unit_norm_query)
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)

    @override
    def fold_and_get_W_dec_norm(self) -> torch.Tensor:
        """Refused, and `fold_W_dec_norm` with it: rescaling one concept's scores changes every support.

        Raises:
            NotImplementedError: always.
        """
        refuse_W_dec_norm()
