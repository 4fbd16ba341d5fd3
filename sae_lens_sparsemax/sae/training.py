"""The sparsemax SAE in training: queries, the gate and its control, and a sparse training pass."""

from __future__ import annotations

import torch
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from typing_extensions import override

from sae_lens_sparsemax.attention.cross_attention import Attention, attend
from sae_lens_sparsemax.sae.encoding import (
    check_finite,
    check_width,
    dense_activations,
    dense_scores,
    gate_scores,
    split_norm,
)
from sae_lens_sparsemax.sae.gate_control import next_gate_scale
from sae_lens_sparsemax.sae.inference import is_hooked, linear_decode
from sae_lens_sparsemax.sae.projected_query import projected_query
from sae_lens_sparsemax.sae.step_metrics import batch_metrics
from sae_lens_sparsemax.sae.training_parameters import SparsemaxParameters


class SparsemaxTrainingSAE(SparsemaxParameters):
    """The cross-attention sparsemax SAE in training (the paper's Eq. 3, and its variants); see SparsemaxParameters."""

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {"l1": self.cfg.l1_coefficient} if self.cfg.l1_coefficient else {}

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense activations and dense scores, (..., d_sae) each, seen by every hook."""
        query, factor = split_norm(self._checked_input(x), self.cfg.unit_norm_query)
        projected = self._project(query)
        hidden_pre = self.hook_sae_acts_pre(dense_scores(projected, self.dictionary.keys.T, self.dictionary.bias))
        acts = gate_scores(hidden_pre, self.cfg.gate, self._gate_scale, self._probabilities)
        return self.hook_sae_acts_post((acts * factor).to(self.dtype)), hidden_pre

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Dense activations (..., d_sae); without gradients or hooks on scores, in the memory of one such matrix."""
        if torch.is_grad_enabled() or is_hooked(self.hook_sae_acts_pre) or self.cfg.gate != "sparsemax":
            return super().encode(x)
        query, factor = split_norm(self._checked_input(x), self.cfg.unit_norm_query)
        bias = self.dictionary.bias
        acts = dense_activations(
            self._project(query),
            self.dictionary.keys.to(query.dtype),
            None if bias is None else bias.to(query.dtype),
            self._gate_scale,
            self._probabilities,
        )
        return self.hook_sae_acts_post((acts * factor).to(self.dtype))

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Reconstructions (..., d_in) of activations (..., d_sae), dense or sparse COO."""
        return self._finish(linear_decode(feature_acts, self.dictionary.values))

    # Supports have a different size in every step, so a compiler has nothing to specialise on; it runs this as it is.
    @torch.compiler.disable
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:  # type: ignore[override]
        """One training pass; activations come back as sparse COO wherever no hook wants to see them dense.

        Raises:
            ValueError: the activations hold NaN or infinity; names the hook and the step.
        """
        x = step_input.sae_in
        check_width(x, self.cfg.d_in)
        check_finite(x, self.cfg.metadata.hook_name, step_input.n_training_steps)
        self._initialise_b_dec(x)
        if self._can_run_sparse(x):
            attention, factor = self._attend(x)
            feature_acts = _scale_rows(attention.acts, factor)
            hidden_pre = attention.scores
            sae_out = self._finish((attention.context * factor).to(self.dtype))
            l0 = attention.counts.sum().item() / max(1, attention.counts.numel())
            metrics = batch_metrics(feature_acts, attention.tau, attention.score_std)
        else:
            feature_acts, hidden_pre = self.encode_with_hidden_pre(x)
            sae_out = self.decode(feature_acts)
            l0 = feature_acts.count_nonzero().item() / max(1, feature_acts.shape[:-1].numel())
            metrics = batch_metrics(feature_acts, None, hidden_pre.detach()[:16].std(correction=0))
        metrics["gate_scale"] = self._gate_scale
        losses = {"mse_loss": self._reconstruction_loss(sae_out, x)}
        losses.update(self.calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out))
        if self.cfg.target_l0 is not None and self.training:
            self._set_gate_scale(next_gate_scale(self._gate_scale, l0, self.cfg.target_l0, self.cfg.target_l0_rate))
        return TrainStepOutput(
            sae_in=x,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics=metrics,
        )

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The L1 penalty Σ_i |f_i|·‖W_dec,i‖, mean over tokens, if there is a coefficient for it."""
        if not self.cfg.l1_coefficient:
            return {}
        magnitudes = feature_acts.abs() @ self.W_dec.norm(dim=-1)
        return {"l1_loss": step_input.coefficients["l1"] * magnitudes.mean()}

    def _attend(self, x: torch.Tensor) -> tuple[Attention, torch.Tensor]:
        own = self.dictionary
        query, factor = self._projected_query(x)
        attention = attend(
            query,
            own.keys,
            own.values,
            own.bias,
            gate_scale=self._gate_scale,
            probabilities=self._probabilities,
        )
        return attention, factor

    def _projected_query(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if x.requires_grad or is_hooked(self.hook_sae_input) or self.cfg.structure == "mlp":
            query, factor = split_norm(self.process_sae_in(x), self.cfg.unit_norm_query)
            return self._project(query), factor
        with torch.no_grad():
            sae_in = self.process_sae_in(x)
        wide = sae_in if sae_in.dtype == torch.float64 else sae_in.float()
        with torch.autocast(wide.device.type, enabled=False):
            return projected_query(
                wide,
                self.b_dec if self.cfg.apply_b_dec_to_input else None,
                self.dictionary.query_map(wide.dtype),
                self.cfg.unit_norm_query,
            )

    def _project(self, query: torch.Tensor) -> torch.Tensor:
        # Scores of rounded queries select wrong concepts, so autocast stays out of here as of the scores.
        with torch.autocast(query.device.type, enabled=False):
            return self.dictionary.project_query(query)

    def _finish(self, context: torch.Tensor) -> torch.Tensor:
        sae_out = self.hook_sae_recons(self.dictionary.project_context(context) + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    def _reconstruction_loss(self, sae_out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        per_token = self.mse_loss_fn(sae_out, x.to(sae_out.dtype)).float().sum(-1)
        if self.cfg.loss_weighting == "inverse_norm":
            norm = torch.linalg.vector_norm(x.float(), dim=-1)
            per_token = torch.where(norm > 0, per_token / norm.clamp_min(torch.finfo(norm.dtype).tiny), per_token)
        return per_token.mean()

    def _checked_input(self, x: torch.Tensor) -> torch.Tensor:
        check_width(x, self.cfg.d_in, self.hook_z_reshaping_mode)
        check_finite(x, self.cfg.metadata.hook_name)
        return self.process_sae_in(x)

    def _can_run_sparse(self, x: torch.Tensor) -> bool:
        hooked = is_hooked(self.hook_sae_acts_pre) or is_hooked(self.hook_sae_acts_post)
        return self.cfg.gate == "sparsemax" and x.ndim == 2 and not hooked

    @property
    def _probabilities(self) -> bool:
        return self.cfg.activations == "probabilities"


def _scale_rows(acts: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    if not acts.is_sparse:
        return acts * factor
    index = acts.indices()
    values = acts.values() * factor.squeeze(-1)[index[0]]
    return torch.sparse_coo_tensor(index, values, acts.shape, is_coalesced=True, check_invariants=False)
