"""The sparsemax SAE for inference: two linear maps around the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import SAE
from torch import nn
from typing_extensions import override

from sae_lens_sparsemax.attention.traceable import is_traced
from sae_lens_sparsemax.files import save_atomically
from sae_lens_sparsemax.sae.config import SparsemaxSAEConfig
from sae_lens_sparsemax.sae.encoding import dense_scores, is_hooked, linear_decode, rounded
from sae_lens_sparsemax.sae.folding import (
    fold_checkpoint,
    fold_pass_maps,
    fold_threshold_scaling,
    refuse_whitened_norm,
)
from sae_lens_sparsemax.sae.passes import (
    Maps,
    dense_activations,
    first_passes,
    kept,
    no_turns,
    observed_activations,
    pass_maps,
    read,
)
from sae_lens_sparsemax.sae.queries import checked_queries
from sae_lens_sparsemax.sae.weights import by_concept, check_weights, is_training_checkpoint, prepare_for_saving


class SparsemaxSAE(SAE[SparsemaxSAEConfig]):
    """A trained sparsemax SAE: f = ‖x‖ · a(z) on the support of the gate, x̂ = f W_dec + b_dec.

    With u = (x − b_dec)/‖x − b_dec‖ and z = u W_enc + b_enc; the support is that of sparsemax(g·z), or of another
    α-entmax, and a(z) is z or the probabilities, as the config says. Further passes read what is unexplained in the
    same way, their queries turned by W_pass, and add to f; what does not exceed its concept's threshold is dropped in
    the end, where the config has a floor for activations. Where decoder norms were folded, output_scale multiplies f in
    the end. `encode` returns dense activations and `decode` is linear in them, so hooks, steering and dashboards work
    as for any SAE. Training checkpoints load into this class too: their projections are folded into W_enc and W_dec.
    """

    b_enc: nn.Parameter
    W_pass: nn.Parameter | None
    threshold: torch.Tensor | None
    output_scale: torch.Tensor | None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.W_enc = nn.Parameter(by_concept(self.W_enc.data))
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))
        turns = no_turns(self.cfg, self.dtype, self.device)
        self.W_pass = None if turns is None else nn.Parameter(pass_maps(turns, 1.0))
        zeros = torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device)
        # No parameter: whether an activation exceeds it has no derivative.
        self.register_buffer("threshold", zeros if self.cfg.activation_floor else None)
        self.register_buffer("output_scale", torch.ones_like(zeros) if self.cfg.has_output_scale else None)

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Activations (..., d_sae) of inputs (..., d_in), dense; zero outside each token's support.

        Raises:
            ValueError: x holds NaN or infinity, or the scores do because weights do.
        """
        sae_in, query, factor = checked_queries(self, x)
        if self._runs_unobserved(query):
            acts = dense_activations(sae_in, query, factor, self._maps(), self.cfg)
        else:
            hidden_pre = self.hook_sae_acts_pre(dense_scores(query, self.W_enc, self.b_enc))
            maps = self._maps()
            acts = kept(observed_activations(sae_in, factor, hidden_pre, maps, self.cfg), maps)
        return self.hook_sae_acts_post(rounded(acts, self.b_dec.dtype))

    @torch.no_grad()
    def first_passes(self, x: torch.Tensor) -> torch.Tensor:
        """In which pass, counted from 1, each concept that `encode` finds active was first selected.

        Args:
            x: (..., d_in) activations, as for `encode`.

        Returns:
            (..., d_sae) sparse COO, int64, with the non-zeros of `encode` where no hook changes scores or activations.
        """
        if self.cfg.passes == 1:
            return (self.encode(x) != 0).long().to_sparse()
        return first_passes(*checked_queries(self, x), self._maps(), self.cfg, self.b_dec.dtype)

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Reconstructions (..., d_in) of activations (..., d_sae): f W_dec + b_dec."""
        return self._finish(linear_decode(feature_acts, self.W_dec))

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstructions (..., d_in), without an N × d_sae matrix unless a hook, a gradient or the error term asks."""
        if not self._runs_unobserved(x) or is_hooked(self.hook_sae_acts_post) or self.use_error_term:
            return super().forward(x)
        given = checked_queries(self, x)
        sae_in, query, factor = (each.reshape(-1, each.shape[-1]) for each in given)
        context = read(sae_in, query, factor, self._maps(), self.cfg).context
        assert context is not None
        return self.hook_sae_output(self._finish(rounded(context.reshape(given[0].shape), self.b_dec.dtype)))

    def _maps(self) -> Maps:
        def unchanged(tensor: torch.Tensor) -> torch.Tensor:
            return tensor

        scale = self.output_scale
        keys, values, bias = self.W_enc.T, self.W_dec, self.b_enc
        return Maps(torch.matmul, keys, values, bias, unchanged, self.W_pass, self.threshold, output_scale=scale)

    def _finish(self, sae_out: torch.Tensor) -> torch.Tensor:
        sae_out = self.hook_sae_recons(sae_out + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    def _runs_unobserved(self, x: torch.Tensor) -> bool:
        """Whether nobody needs the dense scores: no hook on them, no derivative through them, no ReLU of them."""
        tensors = x, *self.parameters()
        if is_traced(*tensors):
            return False
        needs_grad = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
        return self.cfg.gate == "sparsemax" and not needs_grad and not is_hooked(self.hook_sae_acts_pre)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Fold a training checkpoint's projections; refuse the weights of anything else.

        Raises:
            ValueError: tensors are missing, unknown, or of the wrong shape.
        """
        if is_training_checkpoint(state_dict):
            fold_checkpoint(state_dict, self.cfg.activation_floor, self.cfg.map_lr_scale)
        check_weights(state_dict, self)
        state_dict["W_enc"] = by_concept(state_dict["W_enc"])

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        prepare_for_saving(state_dict)

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
        fold_threshold_scaling(self.threshold, scaling_factor, self.cfg.unit_norm_query)
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
        fold_pass_maps(self.W_pass, whitening_matrix, unwhitening_matrix)

    @override
    @torch.no_grad()
    def fold_and_get_W_dec_norm(self) -> torch.Tensor:
        """Give decoder rows unit norm, and activations the norms they had, by their output scale.

        Which concepts are active does not change, up to rounding where passes follow the first.

        Returns:
            (d_sae,) the norms before.
        """
        norms = self.get_W_dec_norm()
        self.W_dec.data /= norms[:, None]
        if self.output_scale is None:
            self.output_scale = torch.ones_like(norms)
            self.cfg.has_output_scale = True
        self.output_scale *= norms
        return norms
