"""Configurations of the sparsemax SAE, for inference and for training.

Field names are SAELens's where it has one. What a field stands for in the paper and in the authors' released code is
said in the docstrings of the classes, from where SAELens's command line takes its help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from sae_lens.saes.sae import SAEConfig, TrainingSAEConfig
from simple_parsing.helpers.fields import field
from typing_extensions import override

from sae_lens_sparsemax.attention.gate import check_gate
from sae_lens_sparsemax.attention.support import check_positive

Activations = Literal["scores", "probabilities"]
Gate = Literal["sparsemax", "relu"]
Structure = Literal["cross_attention", "mlp"]
LossWeighting = Literal["none", "inverse_norm"]
FloorOf = Literal["concept", "dictionary"]
BDecInit = Literal["first_batch_mean", "zeros", "fixed_zeros"]

ARCHITECTURE = "sparsemax"
PACKAGE = "sae_lens_sparsemax"
DEFAULT_TARGET_L0 = 32.0
# What every SAE was before there were more gates than sparsemax and more than one pass.
EARLIER_GATE: dict[str, Any] = {"alpha": 2.0, "passes": 1, "refinements": 0, "activation_floor": 0.0}
EARLIER: dict[str, Any] = EARLIER_GATE | {"floor_of": "concept", "map_lr_scale": 1.0}
# Up to this width, at which rates were measured, d × d maps learn at the full rate; see configs/compare/README.md.
FULL_RATE_WIDTH = 576
# What the values of fields must be, by their annotations.
_KINDS: dict[type, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    bool: (bool, "True or False"),
}
# What measured best, where the activations are scores.
BEST_GATE: dict[str, Any] = {"alpha": 3.0, "passes": 2, "refinements": 1, "activation_floor": 0.5}


@dataclass
class SparsemaxSAEConfig(SAEConfig):
    """A trained sparsemax SAE: linear encoder and decoder around the gate.

    Args:
        activations: on the support, "scores" z or "probabilities" g·z − τ.
        unit_norm_query: scores are made from x/‖x‖, and ‖x‖ multiplies the activations.
        gate: "sparsemax", or "relu" for SAEs trained as the paper's ablation.
        gate_scale: g; the support is that of sparsemax(g·z), or what the budget 1/g allows. Fixed once trained.
        alpha: α of the gate: 2 for sparsemax, infinity for TopK.
        passes: how often concepts are selected, each time for what is unexplained until then.
        refinements: how often what was selected is then weighed once more.
        activation_floor: whether there are thresholds (if positive), below which activations are dropped.
        map_lr_scale: what the maps in a training checkpoint are multiplied with when they are folded.
        has_output_scale: whether activations are multiplied by a number for each concept after all that, as in an SAE
            whose decoder norms were folded.
    """

    activations: Activations = "scores"
    unit_norm_query: bool = True
    gate: Gate = "sparsemax"
    gate_scale: float = 1.0
    alpha: float = 2.0
    passes: int = 1
    refinements: int = 0
    activation_floor: float = 0.0
    map_lr_scale: float = 1.0
    has_output_scale: bool = False

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        _make_plain(self)
        _check_gate(self)
        _check_positive(self, "d_in", "map_lr_scale")


def number_or_none(text: str) -> float | None:
    """A number, or "none": how SAELens's command line reads a field that may be switched off."""
    return None if text.lower() == "none" else float(text)


@dataclass
class SparsemaxTrainingSAEConfig(TrainingSAEConfig):
    """Training configuration of the sparsemax SAE. The defaults are what measured best (see the README).

    alpha, passes, refinements and activation_floor are 3, 2, 1 and 0.5 where they are not given, and 2, 1, 0 and 0 (the
    paper's single sparsemax) with gate "relu" or activations "probabilities".

    d_in may be 0 as long as the width is not known: a run reads it from the model's hook and replaces it
    (`dataclasses.replace(cfg, d_in=width)`); an SAE is built of a positive one only.

    Args:
        activations: Activations on the support S of sparsemax(g·z): the "scores" z themselves (released code), or the
            "probabilities" g·z − τ, which sum to 1 (the paper's Eq. 3) and whose support turns dense under MSE alone.
        unit_norm_query: Score x/‖x‖ and multiply the activations by ‖x‖ (released code; the paper scores x itself).
        gate: "sparsemax", or "relu", which with l1_coefficient is the baseline of the paper's Table 3 and takes no
            gate scale and no target.
        gate_scale: g, the multiple of the scores that the gate looks at: larger selects fewer concepts. Where it
            starts if target_l0 moves it.
        alpha: What selecting a concept costs: the support is that of α-entmax with the budget 1/g,
            Σ (z_i − τ)^(1/(α − 1)) = 1/g. 2 is sparsemax, where one strong concept can spend the whole budget; larger
            ones let it be followed by more, and infinity is TopK with k = 1/g, the same number for every token.
        passes: How often the SAE looks. Each pass after the first reads what is unexplained until then, r = x − x̂, as
            the first reads x: the same concepts, the same gate, and a map of the queries of its own, the identity at
            the start. Activations add up; a concept found twice counts once in L0. A pass costs a score product.
        refinements: How often the concepts that were found are weighed once more by r, so that their activations fit
            together. None are added, so it costs little.
        activation_floor: Share of a mean (a running one over training) below which an activation is taken for noise and
            dropped; target_l0 counts what is left. 0 keeps all.
        floor_of: The mean is that of what all concepts of the "dictionary" contribute, activation times the norm of
            the concept, so that a token that is hard to explain keeps more concepts than another, as in a budget shared
            over the batch: explains most. Or that of each "concept"'s own activations: the concepts are truer.
        target_l0: Mean concepts per token to hold during training by moving g; every token still picks its own
            number. None leaves g alone, and L0 to the data and to init_score_scale, as in the paper. The default of
            32 is a quarter of d_sae where d_sae is less.
        target_l0_rate: How far log g moves per step for each unit of log(L0 / target), itself held within ±1.
        structure: "cross_attention" shares the concepts between encoder and decoder (z = x W_q W_kᵀ Cᵀ, W_dec =
            C W_v); "mlp" learns W_enc, b_enc and W_dec separately, as the paper's Table 3 ablates.
        query_projection: Whether W_q is learnt beside W_k (the paper) or is the identity (released code). Only
            W_q W_kᵀ matters to the model.
        encoder_bias: Whether shared concepts have a bias in their scores, b_enc, as two matrices always have. It
            explains more where concepts a token are many beside d_in, and lets concepts die.
        map_lr_scale: Share of the learning rate at which d × d maps learn: W_q, W_k and W_v, which are this times the
            parameters of their names, and a tenth of it for the maps of later passes. Adam moves every entry by the
            rate, so what a map does to a query moves by more the wider it is, and wide SAEs would diverge at rates at
            which narrow ones learn best. Where it is not given, (576/d_in)², at most 1.
        init_score_scale: The score of a unit-norm query that points exactly at a concept, at initialisation.
        loss_weighting: "none" is Σ_d (x̂ − x)², the paper's loss; "inverse_norm" the same divided by ‖x‖ per token
            (released code, whose constant factor is left out: Adam does not see it).
        l1_coefficient: Weight of Σ_i |f_i|·‖W_dec,i‖ in the loss; for gate "relu".
        b_dec_init: b_dec starts at the mean of the first training batch or at zero, or is no parameter at all
            ("fixed_zeros", released code).
        decoder_init_norm: Norm of decoder rows at initialisation; None makes one concept's contribution the
            projection onto it.
    """

    activations: Activations = "scores"
    unit_norm_query: bool = True
    gate: Gate = "sparsemax"
    gate_scale: float = 1.0
    alpha: float = field(default=None, type=float)  # type: ignore[assignment]
    passes: int = field(default=None, type=int)  # type: ignore[assignment]
    refinements: int = field(default=None, type=int)  # type: ignore[assignment]
    activation_floor: float = field(default=None, type=float)  # type: ignore[assignment]
    floor_of: FloorOf = "dictionary"
    target_l0: float | None = field(default=DEFAULT_TARGET_L0, type=number_or_none)
    target_l0_rate: float = 0.02
    structure: Structure = "cross_attention"
    query_projection: bool = False
    encoder_bias: bool = False
    map_lr_scale: float | None = field(default=None, type=number_or_none)
    init_score_scale: float = 1.0
    loss_weighting: LossWeighting = "none"
    l1_coefficient: float = 0.0
    b_dec_init: BDecInit = "first_batch_mean"
    decoder_init_norm: float | None = field(default=None, type=number_or_none)
    # What the SAE for inference starts with, whose configuration is made of attributes of this one.
    has_output_scale: ClassVar[bool] = False

    @override
    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> SparsemaxTrainingSAEConfig:
        """A config from what `to_dict` made; where a version without a field wrote it, the field is off."""
        earlier = EARLIER if "metadata" in config_dict else {}
        return super().from_dict({**earlier, **config_dict})

    @override
    def __post_init__(self) -> None:
        is_best = self.gate == "sparsemax" and self.activations == "scores"
        for name, value in (BEST_GATE if is_best else EARLIER_GATE).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        _make_plain(self)
        # The metadata takes up what is known by now.
        super().__post_init__()
        # Loaders that find no class for the architecture can say which import brings it.
        self.metadata.package = PACKAGE
        _check_gate(self)
        if self.d_in < 0:
            raise ValueError(f"d_in must be positive, or 0 until the hook tells, got {self.d_in}")
        if self.map_lr_scale is None and self.d_in:
            self.map_lr_scale = min(1.0, (FULL_RATE_WIDTH / self.d_in) ** 2)
        _check_choice(self, "floor_of", FloorOf)
        _check_choice(self, "structure", Structure)
        _check_choice(self, "loss_weighting", LossWeighting)
        _check_choice(self, "b_dec_init", BDecInit)
        _check_positive(self, "init_score_scale", "target_l0_rate", "target_l0", "decoder_init_norm", "map_lr_scale")
        if not 0 <= self.l1_coefficient < math.inf:
            raise ValueError(f"l1_coefficient must be finite and not negative, got {self.l1_coefficient}")
        if self.target_l0 == DEFAULT_TARGET_L0 > self.d_sae:
            self.target_l0 = max(1.0, self.d_sae / 4)
        if self.target_l0 is not None and self.target_l0 > self.d_sae:
            raise ValueError(f"target_l0 must not exceed d_sae = {self.d_sae}, got {self.target_l0}")
        if math.isinf(self.alpha) and self.target_l0 is not None and self.gate_scale == 1:
            self.gate_scale = self.passes / self.target_l0
        if self.gate == "relu" and self.target_l0 is not None:
            raise ValueError(
                f"gate='relu' has no gate scale to move: set target_l0=None (got {self.target_l0}) and choose "
                "l1_coefficient instead"
            )
        if self.normalize_activations == "covariance_whitening":
            self._check_whitening()

    @property
    def map_scale(self) -> float:
        """`map_lr_scale`, of which there is one as soon as d_in is known."""
        assert self.map_lr_scale is not None
        return self.map_lr_scale

    def _check_whitening(self) -> None:
        if self.unit_norm_query:
            raise ValueError(
                "normalize_activations='covariance_whitening' needs unit_norm_query=False: ‖x‖ of a whitened "
                "activation is no function of x that the folded weights could express"
            )
        if self.passes + self.refinements > 1 and not self.apply_b_dec_to_input:
            raise ValueError(
                "normalize_activations='covariance_whitening' needs apply_b_dec_to_input=True with several passes: "
                "without it every pass would take up the mean in a bias of its own"
            )
        if not has_score_bias(self.structure, self.encoder_bias) and not self.apply_b_dec_to_input:
            raise ValueError(
                "normalize_activations='covariance_whitening' needs apply_b_dec_to_input=True or encoder_bias=True "
                "with structure='cross_attention': without them the mean would have no bias to fold into"
            )


def has_score_bias(structure: str, encoder_bias: bool) -> bool:
    """Whether scores have a bias to learn: those of two matrices always do."""
    return structure == "mlp" or encoder_bias


def _make_plain(cfg: SparsemaxSAEConfig | SparsemaxTrainingSAEConfig) -> None:
    """Refuse numbers and switches that are none, and make those of NumPy and torch Python's, which can be saved."""
    hints = get_type_hints(type(cfg))  # not the fields' own types, which SAELens's command line replaces
    for each in fields(cfg):
        value: Any = getattr(cfg, each.name)
        plain = value.item() if getattr(value, "ndim", None) == 0 else value
        hint = hints[each.name]
        may_be_none = NoneType in get_args(hint)
        kind = get_args(hint)[0] if may_be_none else hint
        if kind not in _KINDS or (value is None and may_be_none):
            continue
        accepted, what = _KINDS[kind]
        if not isinstance(plain, accepted) or isinstance(plain, bool) != (accepted is bool):
            raise ValueError(f"{each.name} must be {what}, got {value!r}")
        setattr(cfg, each.name, plain)


def _check_gate(cfg: SparsemaxSAEConfig | SparsemaxTrainingSAEConfig) -> None:
    _check_choice(cfg, "activations", Activations)
    _check_choice(cfg, "gate", Gate)
    _check_positive(cfg, "d_sae")
    check_gate(cfg.gate_scale, cfg.activations == "probabilities", cfg.alpha)
    if cfg.gate == "relu" and cfg.activations != "scores":
        raise ValueError(f"gate='relu' has activations='scores' only, got {cfg.activations!r}")
    if cfg.passes < 1 or cfg.refinements < 0:
        raise ValueError(
            f"passes must be at least 1 and refinements at least 0, got passes={cfg.passes}, "
            f"refinements={cfg.refinements}"
        )
    if cfg.gate == "relu" and cfg.passes + cfg.refinements > 1:
        raise ValueError("passes must be 1 and refinements 0 with gate='relu', which has no gate scale to share")
    if not 0 <= cfg.activation_floor < 1:
        raise ValueError(f"activation_floor must be at least 0 and less than 1, got {cfg.activation_floor}")
    if cfg.gate == "relu" and cfg.activation_floor:
        raise ValueError(f"activation_floor must be 0 with gate='relu', got {cfg.activation_floor}")
    if cfg.refinements and cfg.activations != "scores":
        raise ValueError(
            f"refinements must be 0 with activations={cfg.activations!r}, which sum to 1: they weigh with scores"
        )


def gate_of(cfg: SparsemaxSAEConfig | SparsemaxTrainingSAEConfig) -> dict[str, Any]:
    """How a config's gate selects and what it gives, as the functions of `attention` take it by name."""
    probabilities = cfg.activations == "probabilities"
    return {"gate_scale": cfg.gate_scale, "probabilities": probabilities, "alpha": cfg.alpha}


def _check_choice(cfg: SAEConfig, name: str, choices: Any) -> None:
    value, valid = getattr(cfg, name), get_args(choices)
    if value not in valid:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, valid))}, got {value!r}")


def _check_positive(cfg: SAEConfig, *names: str) -> None:
    for name in names:
        if (value := getattr(cfg, name)) is not None:
            check_positive(name, value)
