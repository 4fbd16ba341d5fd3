"""What a sparsemax SAE learns: its parameters, and how they are started, moved, stored and folded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE
from torch import nn
from typing_extensions import override

from sae_lens_sparsemax.files import save_atomically
from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.sae.dictionaries import arrange, build_dictionary
from sae_lens_sparsemax.sae.folding import check_weights, fold_checkpoint, is_training_checkpoint
from sae_lens_sparsemax.sae.inference import refuse_W_dec_norm, refuse_whitened_norm


class SparsemaxParameters(TrainingSAE[SparsemaxTrainingSAEConfig]):
    """The parameters of `SparsemaxTrainingSAE`, which adds what it computes from them.

    Parameters: `dictionary.concepts`, `dictionary.W_k`, `dictionary.W_v`, perhaps `dictionary.W_q`, and `b_dec`; or
    `dictionary.W_enc`, `dictionary.b_enc`, `dictionary.W_dec` and `b_dec` with structure="mlp". Buffers: the gate
    scale g and whether b_dec has seen its first batch.

    `W_enc` and `W_dec` are computed from the parameters: read them, but do not write to them.
    """

    gate_scale: torch.Tensor
    b_dec_is_initialised: torch.Tensor

    def __init__(self, cfg: SparsemaxTrainingSAEConfig, use_error_term: bool = False) -> None:
        # Training moves the gate scale in the config, which two SAEs or two runs may have been given.
        super().__init__(copy.deepcopy(cfg), use_error_term)

    @override
    def initialize_weights(self) -> None:
        self.dictionary = build_dictionary(self.cfg, self.dtype, self.device)
        self.b_dec = nn.Parameter(
            torch.zeros(self.cfg.d_in, dtype=self.dtype, device=self.device),
            requires_grad=self.cfg.b_dec_init != "fixed_zeros",
        )
        self.register_buffer("gate_scale", torch.tensor(self.cfg.gate_scale, dtype=torch.float64, device=self.device))
        ready = self.cfg.b_dec_init != "first_batch_mean"
        self.register_buffer("b_dec_is_initialised", torch.tensor(ready, device=self.device))

    @property
    def W_enc(self) -> torch.Tensor:  # type: ignore[override]
        """(d_in, d_sae) encoder, computed."""
        return self.dictionary.W_enc

    @property
    def b_enc(self) -> torch.Tensor:
        """(d_sae,) encoder bias; zeros with shared concepts."""
        return self.dictionary.b_enc

    @property
    def W_dec(self) -> torch.Tensor:  # type: ignore[override]
        """(d_sae, d_in) decoder, computed."""
        return self.dictionary.W_dec

    @torch.no_grad()
    def _initialise_b_dec(self, x: torch.Tensor) -> None:
        if not self.b_dec_is_initialised:
            # b_dec lives where the SAE computes, which layer_norm moves away from x.
            x = self.run_time_activation_norm_fn_in(x)
            self.b_dec.copy_(x.reshape(-1, x.shape[-1]).double().mean(0))
            self.b_dec_is_initialised.fill_(True)

    @property
    def _gate_scale(self) -> float:
        # The config carries g in full precision through files whose weights are rounded to a smaller dtype.
        return self.cfg.gate_scale

    def _set_gate_scale(self, gate_scale: float) -> None:
        self.cfg.gate_scale = gate_scale
        self.gate_scale.fill_(gate_scale)

    @override
    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """Move to a device or dtype; the gate scale keeps its precision and b_dec's flag stays a flag."""
        result = super()._apply(fn, recurse)
        self.gate_scale = self.gate_scale.to(torch.float64)
        if self.gate_scale.device.type != "meta":
            self.gate_scale.fill_(self.cfg.gate_scale)
        self.b_dec_is_initialised = self.b_dec_is_initialised.bool()
        return result

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Refuse weights that are not a training checkpoint of this structure.

        Raises:
            ValueError: naming what is missing or unknown.
        """
        if not is_training_checkpoint(state_dict) and {"W_enc", "W_dec"} <= state_dict.keys():
            raise ValueError(
                f"cannot load into {type(self).__name__}: these are folded weights (W_enc, W_dec) of an inference SAE "
                "or of another architecture; load them with SAE.load_from_disk, or name a training checkpoint"
            )
        check_weights(state_dict, self)
        arrange(state_dict)

    @override
    def load_weights_from_checkpoint(self, checkpoint_path: Path | str) -> None:
        super().load_weights_from_checkpoint(checkpoint_path)
        self.cfg.gate_scale = self.gate_scale.item()

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Files hold contiguous tensors, whatever layout training prefers."""
        for name, value in state_dict.items():
            state_dict[name] = value.contiguous()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        fold_checkpoint(state_dict)

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write a training checkpoint; files already there are replaced only by complete ones."""
        return save_atomically(path, super().save_model)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write the folded SAE that `SAE.load_from_disk` reads as a SparsemaxSAE."""
        return save_atomically(path, super().save_inference_model)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Take raw activations x in place of scaling_factor · x, exactly: the supports do not change."""
        identity = torch.eye(self.cfg.d_in, dtype=torch.float64, device=self.device)
        # With unit-norm queries the scale cancels in the scores and stands in ‖x‖ already.
        if not self.cfg.unit_norm_query:
            self.dictionary.fold_input_map(identity * scaling_factor)
            self.dictionary.fold_output_map(identity / scaling_factor)
        self.b_dec.data /= scaling_factor
        self.cfg.normalize_activations = "none"

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self, mean: torch.Tensor, whitening_matrix: torch.Tensor, unwhitening_matrix: torch.Tensor
    ) -> None:
        """Take raw activations in place of whitened ones (x − mean) M, exactly; raw queries only.

        Raises:
            NotImplementedError: unit-norm queries, which the config refuses beforehand.
        """
        refuse_whitened_norm(self.cfg.unit_norm_query)
        mean, matrix, inverse = (t.to(self.device, torch.float64) for t in (mean, whitening_matrix, unwhitening_matrix))
        # The shift comes first: where it is impossible, nothing has been changed yet.
        if not self.cfg.apply_b_dec_to_input:
            self.dictionary.fold_input_shift(mean @ matrix)
        self.dictionary.fold_input_map(matrix)
        self.dictionary.fold_output_map(inverse)
        self.b_dec.data.copy_(self.b_dec.double() @ inverse + mean)
        self.cfg.normalize_activations = "none"

    @override
    def fold_W_dec_norm(self) -> None:
        """Refused: scores are compared with each other, so rescaling one concept's changes every support.

        Raises:
            NotImplementedError: always.
        """
        refuse_W_dec_norm()
