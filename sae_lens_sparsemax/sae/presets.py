"""Presets: settings of the training configuration by name, after their sources or what they are for."""

from __future__ import annotations

from typing import Any

from sae_lens_sparsemax.sae.config import EARLIER, EARLIER_GATE

PRESETS: dict[str, dict[str, Any]] = {
    # Eq. 3 to the letter: probabilities of raw queries, all three projections, plain MSE, nothing steers L0.
    "paper": {
        "activations": "probabilities",
        **EARLIER,
        "unit_norm_query": False,
        "query_projection": True,
        "target_l0": None,
        "loss_weighting": "none",
        "b_dec_init": "zeros",
    },
    # The authors' repository: scores on the support, unit-norm queries, no W_q, no biases, weighted loss. Its mask of
    # concepts that fire on more than a tenth of the tokens is undocumented, unsaved state, and left out.
    "released": {
        "activations": "scores",
        **EARLIER,
        "unit_norm_query": True,
        "query_projection": False,
        "target_l0": None,
        "loss_weighting": "inverse_norm",
        "b_dec_init": "fixed_zeros",
        "apply_b_dec_to_input": False,
    },
    # One pass of sparsemax, as in the paper, trained with what measured best otherwise.
    "sparsemax": EARLIER_GATE,
    # The cheapest good one: a single pass.
    "one_pass": {"passes": 1, "refinements": 0},
    # The one that explains most: a third pass, which costs more than a default may.
    "three_passes": {"passes": 3},
    # Truest where features are many, correlated and hierarchical: few strong activations. A lower target_l0 than usual
    # serves it best.
    "features": {"refinements": 0, "activation_floor": 0.7, "floor_of": "concept"},
}
