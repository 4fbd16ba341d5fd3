"""Holding the mean L0 at a target by moving the gate scale."""

from __future__ import annotations

import math

# No useful gate lies outside: at 1e-6 every concept is selected, at 1e6 one.
MIN_GATE_SCALE, MAX_GATE_SCALE = 1e-6, 1e6


def next_gate_scale(gate_scale: float, l0: float, target_l0: float, rate: float) -> float:
    """g for the next training step: log g moves by rate · log(L0 / target), the logarithm held within ±1.

    A larger g spreads the scores that sparsemax sees and so selects fewer concepts; working in logarithms makes one
    rate serve any scale, and the clamp keeps the dense supports of the first steps from throwing g far off.

    Args:
        gate_scale: g now. l0: mean concepts per token in this batch. target_l0: what it should be. rate: step size.

    Returns:
        The new g, positive.
    """
    error = math.log(max(l0, 1e-3) / target_l0)
    moved = gate_scale * math.exp(rate * max(-1.0, min(1.0, error)))
    return max(MIN_GATE_SCALE, min(MAX_GATE_SCALE, moved))
