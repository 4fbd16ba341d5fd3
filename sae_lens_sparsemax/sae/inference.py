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
from sae_lens_sparsemax.attention.rows import row_offsets, weighted_rows
from sae_lens_sparsemax.files import save_atomically
from sae_lens_sparsemax.sae.config import SparsemaxSAEConfig
from sae_lens_sparsemax.sae.encoding import (
    check_finite,
    check_width,
    dense_activations,
    dense_scores,
    gate_scores,
    split_norm,
)
from sae_lens_sparsemax.sae.folding import check_weights, fold_checkpoint, is_training_checkpoint

# Share of non-zero activations below which a weighted sum of decoder rows beats the matrix product.
MAX_LIST_DENSITY = 0.05


class SparsemaxSAE(SAE[SparsemaxSAEConfig]):
    """A trained sparsemax SAE: f = ‖x‖ · a(z) on the support of sparsemax(g·z), x̂ = f W_dec + b_dec.

    With u = (x − b_dec)/‖x − b_dec‖ and z = u W_enc + b_enc; a(z) is z or g·z − τ, as the config says. `encode`
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
            ValueError: x holds NaN or infinity.
        """
        sae_in = self._checked_input(x)
        query, factor = split_norm(sae_in, self.cfg.unit_norm_query)
        if self._runs_unobserved(query):
            acts = dense_activations(
                query,
                self.W_enc.T.to(query.dtype),
                self.b_enc.to(query.dtype),
                self.cfg.gate_scale,
                self._probabilities,
            )
        else:
            hidden_pre = self.hook_sae_acts_pre(dense_scores(query, self.W_enc, self.b_enc))
            acts = gate_scores(hidden_pre, self.cfg.gate, self.cfg.gate_scale, self._probabilities)
        return self.hook_sae_acts_post((acts * factor).to(self.dtype))

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Reconstructions (..., d_in) of activations (..., d_sae): f W_dec + b_dec."""
        return self._finish(linear_decode(feature_acts, self.W_dec))

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions (..., d_in), without an N × d_sae matrix unless a hook, a gradient or the error term asks."""
        if not self._runs_unobserved(x) or is_hooked(self.hook_sae_acts_post) or self.use_error_term:
            return super().forward(x)
        sae_in = self._checked_input(x)
        query, factor = split_norm(sae_in, self.cfg.unit_norm_query)
        rows = query.reshape(-1, query.shape[-1])
        with torch.autocast(rows.device.type, enabled=False):
            found = select(rows, self.W_enc.T.to(rows.dtype), self.b_enc.to(rows.dtype), self.cfg.gate_scale)
            if found is None:
                return super().forward(x)
            support = found[0]
            acts = support_activations(support, self.cfg.gate_scale, self._probabilities)
            context = weighted_rows(support.crow, support.col, acts, self.W_dec.to(rows.dtype))
            context = context.reshape(query.shape)
        return self.hook_sae_output(self._finish((context * factor).to(self.dtype)))

    @property
    def _probabilities(self) -> bool:
        return self.cfg.activations == "probabilities"

    def _checked_input(self, x: torch.Tensor) -> torch.Tensor:
        check_width(x, self.cfg.d_in, self.hook_z_reshaping_mode)
        check_finite(x, self.cfg.metadata.hook_name)
        return self.process_sae_in(x)

    def _finish(self, sae_out: torch.Tensor) -> torch.Tensor:
        sae_out = self.hook_sae_recons(sae_out + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    def _runs_unobserved(self, x: torch.Tensor) -> bool:
        """Whether nobody needs the dense scores: no hook on them, no gradient through them, no ReLU of them."""
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
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Take raw activations x in place of scaling_factor · x, exactly: the supports do not change."""
        if self.cfg.unit_norm_query:
            # Scores see directions only, so the scale cancels; activations are then in units of the raw ‖x‖.
            self.b_dec.data /= scaling_factor
        else:
            self.W_enc.data *= scaling_factor
            self.W_dec.data /= scaling_factor
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
    def fold_W_dec_norm(self) -> None:
        """Refused: scores are compared with each other, so rescaling one concept's changes every support.

        Raises:
            NotImplementedError: always.
        """
        refuse_W_dec_norm()


def linear_decode(feature_acts: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """feature_acts · table, (..., M) · (M, d), through lists of non-zeros where they are few.

    Takes sparse COO (N, M) activations too. With gradients it is the plain product: a gradient with respect to
    activations is wanted at inactive concepts as well.
    """
    if feature_acts.is_sparse:
        with torch.autocast(table.device.type, enabled=False):
            return torch.sparse.mm(feature_acts.to(table.dtype), table)
    if torch.is_grad_enabled() and (feature_acts.requires_grad or table.requires_grad):
        return feature_acts @ table
    rows = feature_acts.reshape(-1, feature_acts.shape[-1])
    if rows.is_floating_point() and rows.dtype in (torch.float32, torch.float64) and rows.dtype == table.dtype:
        row, col = rows.nonzero(as_tuple=True)
        if col.numel() <= MAX_LIST_DENSITY * rows.numel():
            context = weighted_rows(row_offsets(row, rows.shape[0]), col, rows[row, col], table)
            return context.reshape(*feature_acts.shape[:-1], table.shape[-1])
    return feature_acts @ table


def refuse_whitened_norm(unit_norm_query: bool) -> None:
    """Whitening cannot be folded behind x/‖x‖."""
    if unit_norm_query:
        raise NotImplementedError(
            "a whitening cannot be folded into a sparsemax SAE with unit_norm_query=True: its norms are those of "
            "whitened activations; train with unit_norm_query=False or without covariance_whitening"
        )


def refuse_W_dec_norm() -> None:
    """Decoder norms cannot be moved into the scores."""
    raise NotImplementedError(
        "decoder norms cannot be folded into a sparsemax SAE: scaling the scores of concepts against each other "
        "changes which of them sparsemax selects"
    )


def is_hooked(point: nn.Module) -> bool:
    """Whether a hook point has hooks, forward or backward."""
    return bool(point._forward_hooks or point._backward_hooks)
