"""What a comparison trains: an architecture at several values of what sets its sparsity, at several learning rates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_sparsemax.settings.checking import build
from sae_lens_sparsemax.settings.sentences import must_be, must_be_one_of
from sae_lens_sparsemax.settings.values import check_file_name
from sae_lens_sparsemax.training.config_file import with_preset

# Fields of every SAE's config; an arm's sparsity field is another.
_SET_HERE = ("d_in", "d_sae", "device", "metadata")


@dataclass
class Arm:
    """One line of the plots: an architecture and the values of the field that sets its sparsity."""

    name: str
    """Label in tables and plots."""
    architecture: str
    """Name of a training architecture registered with SAELens."""
    sparsity_field: str
    """Field of the SAE's config that is varied: `k`, `target_l0`, `l1_coefficient`, …"""
    sparsities: list[int | float]
    """Values of that field."""
    lrs: list[float]
    """Learning rates; every value of the sparsity field is trained at each, and the best is reported."""
    one_lr: bool | None = None
    """Whether all values of the sparsity field are reported at the same rate, as they should be where the rate
    moves L0; by default for fields that are coefficients. See `selection`."""
    steps_factor: float = 1.0
    """How many times the comparison's `steps` it is trained, its learning rate's schedule stretched as much: so that
    an architecture whose step costs less can be given as many more. It goes on with further activations, unless
    `n_training_tokens` says how many there are; fields of `sae` that count steps stay as they are."""
    sae: dict[str, Any] = field(default_factory=dict)
    """Other fields of the SAE's config, or its `preset`, without those that the comparison sets."""

    def __post_init__(self) -> None:
        check_file_name("name", self.name)
        if self.sparsity_field in _SET_HERE:
            raise must_be("sparsity_field", "a field that the comparison leaves to its arms", self.sparsity_field)
        for key in (*_SET_HERE, self.sparsity_field):
            if key in self.sae:
                raise must_be(f"sae.{key}", "left out, as the comparison sets it", self.sae[key])
        if self.one_lr is None:
            self.one_lr = self.sparsity_field.endswith("coefficient")
        # Results are known by what a preset holds, which versions may change.
        self.sae = with_preset(self.sae, self.architecture)

    def sae_config(self, sparsity: float, **common: Any) -> TrainingSAEConfig:
        """The SAE's config at one value of the sparsity field; `common` are fields all arms share."""
        if self.architecture not in SAE_TRAINING_CLASS_REGISTRY:
            raise must_be_one_of(f"arms.{self.name}.architecture", self.architecture, SAE_TRAINING_CLASS_REGISTRY)
        config_class = get_sae_training_class(self.architecture)[1]
        # The type of the field decides whether 32 is a whole number, as TopK's k must be.
        return build(config_class, {**common, **self.sae, self.sparsity_field: sparsity}, f"arms.{self.name}.sae")
