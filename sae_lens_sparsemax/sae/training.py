"""The sparsemax SAE in training: its parameters, a sparse training pass, and the gate that follows a target L0."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainStepInput, TrainStepOutput
from torch import nn
from typing_extensions import override

from sae_lens_sparsemax.attention.support import UnrankableScores
from sae_lens_sparsemax.attention.traceable import full_precision, is_traced, wide
from sae_lens_sparsemax.files import save_atomically
from sae_lens_sparsemax.sae import folding, passes
from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.sae.dictionaries import build_dictionary
from sae_lens_sparsemax.sae.divergence import came_to_nothing
from sae_lens_sparsemax.sae.encoding import dense_scores, is_hooked, linear_decode, rounded
from sae_lens_sparsemax.sae.gate_control import batch_metrics, next_gate_scale
from sae_lens_sparsemax.sae.losses import l1_penalty, reconstruction_loss
from sae_lens_sparsemax.sae.queries import check_finite, check_width, checked_queries, projected_query, split_norm
from sae_lens_sparsemax.sae.sharding import OverRanks, local, mesh_of_new_saes
from sae_lens_sparsemax.sae.thresholds import above, follow_mean, mean_activations
from sae_lens_sparsemax.sae.weights import prepare_for_saving, prepare_for_training, saved_gate_scale


class SparsemaxTrainingSAE(OverRanks, TrainingSAE[SparsemaxTrainingSAEConfig]):
    """The cross-attention sparsemax SAE in training (the paper's Eq. 3, and its variants).

    Parameters: `dictionary.concepts`, `dictionary.W_k`, `dictionary.W_v`, perhaps `dictionary.W_q` and
    `dictionary.b_enc`, and `b_dec`; or `dictionary.W_enc`, `dictionary.b_enc`, `dictionary.W_dec` and `b_dec` with
    structure="mlp"; and `turns`, from which the maps of further passes' queries are made, where there are any. `W_enc`,
    `W_dec` and `W_pass` are computed from the parameters: read them; with shared concepts, writing to the first two
    raises a ValueError.

    The gate scale g is `cfg.gate_scale`, which only `gate_scale` reads and writes here. A float of the config is exact
    in every file and copy, whereas a buffer is rounded with the weights by `.to(dtype)` and by SAELens's loaders, and
    the inference SAE takes g from its config anyway. So each SAE has a config of its own.
    """

    turns: nn.Parameter | None
    mean_acts: torch.Tensor | None
    b_dec_is_initialised: torch.Tensor

    def __init__(self, cfg: SparsemaxTrainingSAEConfig, use_error_term: bool = False) -> None:
        if cfg.d_in < 1:
            raise ValueError(f"d_in must be the width of the activations when an SAE is built, got {cfg.d_in}")
        # Training moves the gate scale in the config, which two SAEs or two runs may have been given.
        super().__init__(copy.deepcopy(cfg), use_error_term)

    @override
    def initialize_weights(self) -> None:
        self.dictionary = build_dictionary(self.cfg, self.dtype, self.device, self.concepts_to_make())
        turns = passes.no_turns(self.cfg, self.dtype, self.device)
        self.turns = None if turns is None else nn.Parameter(turns)
        b_dec = torch.zeros(self.cfg.d_in, dtype=self.dtype, device=self.device)
        self.b_dec = nn.Parameter(b_dec, requires_grad=self.cfg.b_dec_init != "fixed_zeros")
        self.register_buffer("mean_acts", mean_activations(self.cfg, self.dtype, self.device))
        ready = torch.tensor(self.cfg.b_dec_init != "first_batch_mean", device=self.device)
        self.register_buffer("b_dec_is_initialised", ready)
        self.divide(mesh_of_new_saes(self.device))

    @property
    def gate_scale(self) -> float:
        """g, the multiple of the scores that the gate looks at."""
        return self.cfg.gate_scale

    @gate_scale.setter
    def gate_scale(self, value: float) -> None:
        self.cfg.gate_scale = value

    @property
    def W_enc(self) -> torch.Tensor:  # type: ignore[override]
        """(d_in, d_sae) encoder, computed."""
        return self.dictionary.W_enc

    @property
    def b_enc(self) -> torch.Tensor:
        """(d_sae,) encoder bias; zeros where there is none to learn."""
        bias = self.dictionary.bias
        return self.b_dec.new_zeros(self.cfg.d_sae) if bias is None else bias

    @property
    def W_dec(self) -> torch.Tensor:  # type: ignore[override]
        """(d_sae, d_in) decoder, computed."""
        return self.dictionary.W_dec

    @property
    def W_pass(self) -> torch.Tensor | None:
        """(passes - 1 + refinements, d_in, d_in) maps of the residuals' queries, computed, or None."""
        return None if self.turns is None else passes.pass_maps(self.turns, self.cfg.map_scale)

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {"l1": self.cfg.l1_coefficient} if self.cfg.l1_coefficient else {}

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense activations and the dense scores of the first pass, (..., d_sae) each, seen by every hook."""
        selected, hidden_pre = self._select_observed(x)
        return self._drop_weak(selected), hidden_pre

    def _select_observed(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sae_in, query, factor = checked_queries(self, x)
        scores = dense_scores(self._project(query), self.dictionary.keys.T, self.dictionary.bias)
        hidden_pre = self.hook_sae_acts_pre(scores)
        return passes.observed_activations(sae_in, factor, hidden_pre, self._maps(), self.cfg), hidden_pre

    def _drop_weak(self, selected: torch.Tensor) -> torch.Tensor:
        return self.hook_sae_acts_post(rounded(above(selected, self._threshold()), self.b_dec.dtype))

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Dense activations (..., d_sae); without gradients or hooks on scores, in the memory of one such matrix."""
        observed = torch.is_grad_enabled() or is_hooked(self.hook_sae_acts_pre) or is_traced(x, *self.parameters())
        if observed or self.cfg.gate != "sparsemax":
            return super().encode(x)
        sae_in, query, factor = checked_queries(self, x)
        acts = passes.dense_activations(sae_in, self._project(query), factor, self._maps(), self.cfg)
        return self.hook_sae_acts_post(rounded(acts, self.b_dec.dtype))

    @override
    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """Reconstructions (..., d_in) of activations (..., d_sae), dense or sparse COO."""
        return self._finish(linear_decode(feature_acts, self.dictionary.values))

    # Supports have a different size in every step, so a compiler has nothing to specialise on; it runs this as it is.
    @torch.compiler.disable
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:  # type: ignore[override]
        """One training pass.

        Returns:
            SAELens's output. `feature_acts` (N, d_sae) is sparse COO, coalesced, for scores on supports, and dense for
            probabilities, whose supports often are, and for gate "relu": the config alone decides, neither hooks, which
            see the same values dense, nor how many concepts are active. `to_dense()` serves both. `hidden_pre` is what
            was computed on the way: the scores on the supports as sparse COO without gradient, or all scores, dense.

        Raises:
            ValueError: the activations are none or not finite, or (`Diverged`) the scores or the loss; names the step.
        """
        x = step_input.sae_in
        check_width(x, self.cfg.d_in)
        step = step_input.n_training_steps + 1  # the host counts those that are done
        if not x.numel():
            raise ValueError(f"the batch of training step {step} must hold at least one token, got {tuple(x.shape)}")
        check_finite(x, self.cfg.metadata.hook_name, step)
        self._initialise_b_dec(x)
        try:
            output = self.over_ranks(self._forward_pass, x, step_input)
        except UnrankableScores as error:
            problem = str(error)
        else:
            if math.isfinite(loss := output.loss.item()):
                return output
            problem = f"the loss must be finite, got {loss}"
        raise came_to_nothing(step, problem, x)

    def _forward_pass(self, x: torch.Tensor, step_input: TrainStepInput) -> TrainStepOutput:
        if self._can_run_sparse(x):
            found = passes.read(*self._centred_and_projected(x), self._maps(), self.cfg)
            selected, feature_acts, hidden_pre = found.selected, found.acts, found.scores
            assert found.context is not None
            sae_out = self._finish(found.context.to(self.b_dec.dtype))
            l0, tau, score_std, pass_counts = found.counts, found.tau, found.score_std, found.pass_counts
        else:
            self.refuse_whole_rows()
            selected, hidden_pre = self._select_observed(x)
            feature_acts = self._drop_weak(selected)
            sae_out = self.decode(feature_acts)
            l0, tau, pass_counts = feature_acts.count_nonzero(-1).flatten(), None, []
            score_std = hidden_pre.detach()[:16].std(correction=0)
        l0, *pass_counts = self.everyones([l0, *pass_counts])
        metrics = {**batch_metrics(l0, tau, score_std, pass_counts), "gate_scale": self.gate_scale}
        losses = {"mse_loss": reconstruction_loss(self.mse_loss_fn(sae_out, x.to(sae_out.dtype)), x, self.cfg)}
        losses.update(self.calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out))
        has_lists = (self.cfg.gate, self.cfg.activations) == ("sparsemax", "scores") or self.concept_shard is not None
        if has_lists != feature_acts.is_sparse:
            feature_acts = feature_acts.to_sparse() if has_lists else feature_acts.to_dense()
        if self.mean_acts is not None and self.training:
            values = self.dictionary.values if self.cfg.floor_of == "dictionary" else None
            follow_mean(self.mean_acts, selected, self.total_over_ranks, values)
        if self.cfg.target_l0 is not None and self.training:
            mean_l0 = l0.sum().item() / max(1, l0.numel())
            self.gate_scale = next_gate_scale(self.gate_scale, mean_l0, self.cfg.target_l0, self.cfg.target_l0_rate)
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
        penalty = l1_penalty(feature_acts, self.W_dec, sae_out)
        return {"l1_loss": step_input.coefficients["l1"] * penalty}

    def _maps(self) -> passes.Maps:
        own, threshold = self.dictionary, self._threshold()
        write, W_pass = own.project_context, self.W_pass
        return passes.Maps(self._project, own.keys, own.values, own.bias, write, W_pass, threshold, self.concept_shard)

    def _threshold(self) -> torch.Tensor | None:
        return None if self.mean_acts is None else self.cfg.activation_floor * self.mean_acts

    def _centred_and_projected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Centred inputs, their projected queries, and what multiplies the activations of these."""
        if x.requires_grad or is_hooked(self.hook_sae_input) or self.cfg.structure == "mlp":
            sae_in = wide(self.process_sae_in(x))
            query, factor = split_norm(sae_in, self.cfg.unit_norm_query)
            return sae_in, self._project(query), factor
        with torch.no_grad():
            sae_in = wide(self.process_sae_in(x))
        b_dec = self.b_dec if self.cfg.apply_b_dec_to_input else None
        with full_precision(sae_in):
            query, factor = projected_query(
                sae_in, b_dec, self.dictionary.query_map(sae_in.dtype), self.cfg.unit_norm_query
            )
        if b_dec is not None and self.turns is not None:
            # Later passes read x − b_dec itself, so that b_dec has a gradient through it: of a difference of zero.
            sae_in = sae_in - (b_dec - b_dec.detach())
        return sae_in, query, factor

    def _project(self, query: torch.Tensor, turn: torch.Tensor | None = None) -> torch.Tensor:
        # Scores of rounded queries select wrong concepts, so autocast stays out of here as of the scores.
        with full_precision(query):
            return self.dictionary.project_query(query, turn)

    def _finish(self, context: torch.Tensor) -> torch.Tensor:
        sae_out = self.hook_sae_recons(self.dictionary.project_context(context) + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(sae_out), self.d_head)

    @torch.no_grad()
    def _initialise_b_dec(self, x: torch.Tensor) -> None:
        if not self.b_dec_is_initialised:
            # b_dec lives where the SAE computes, which layer_norm moves away from x.
            x = self.run_time_activation_norm_fn_in(x)
            local(self.b_dec).copy_(self.mean_over_ranks(x.reshape(-1, x.shape[-1]).double().mean(0)))
            self.b_dec_is_initialised.fill_(True)

    def _can_run_sparse(self, x: torch.Tensor) -> bool:
        hooked = is_hooked(self.hook_sae_acts_pre) or is_hooked(self.hook_sae_acts_post)
        return self.cfg.gate == "sparsemax" and x.ndim == 2 and not hooked

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Refuse, with a ValueError, weights that are not a training checkpoint of this structure."""
        prepare_for_training(state_dict, self)

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        """Continue from a checkpoint: its weights, and the gate scale of its config."""
        super().load_weights_from_checkpoint(checkpoint_path)
        self.gate_scale = saved_gate_scale(checkpoint_path)

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        prepare_for_saving(state_dict)

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        folding.fold_checkpoint(state_dict, self.cfg.activation_floor, self.cfg.map_scale)

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write a training checkpoint; files already there are replaced only by complete ones."""
        return save_atomically(path, super().save_model)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write the folded SAE that `SAE.load_from_disk` reads as a SparsemaxSAE."""
        return save_atomically(path, super().save_inference_model)

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Take raw activations x in place of scaling_factor · x, exactly: the supports do not change."""
        with self.on_own_tensors():
            folding.fold_scaling(self.dictionary, self.b_dec, scaling_factor, self.cfg.unit_norm_query)
            folding.fold_threshold_scaling(self.mean_acts, scaling_factor, self.cfg.unit_norm_query)
        self.cfg.normalize_activations = "none"

    @override
    def fold_activation_whitening(
        self, mean: torch.Tensor, whitening_matrix: torch.Tensor, unwhitening_matrix: torch.Tensor
    ) -> None:
        """Take raw activations in place of whitened ones (x − mean) M, exactly; raw queries only.

        Raises:
            NotImplementedError: unit-norm queries, which the config refuses beforehand.
        """
        folding.refuse_whitened_norm(self.cfg.unit_norm_query)
        subtracted = self.cfg.apply_b_dec_to_input
        with self.on_own_tensors():
            folding.fold_whitening(self.dictionary, self.b_dec, mean, whitening_matrix, unwhitening_matrix, subtracted)
            folding.fold_pass_maps(self.turns, whitening_matrix, unwhitening_matrix)
        self.cfg.normalize_activations = "none"

    @override
    def fold_and_get_W_dec_norm(self) -> torch.Tensor:
        """Refused, and `fold_W_dec_norm` with it: only an SAE for inference has a scale for activations.

        Raises:
            NotImplementedError: always.
        """
        folding.refuse_W_dec_norm()
