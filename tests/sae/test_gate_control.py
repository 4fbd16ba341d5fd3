"""What a step reports, and the gate scale's controller alone; its effect in training is tested with the SAE."""

import math

import pytest
import torch

from sae_lens_sparsemax.sae.gate_control import MAX_GATE_SCALE, MIN_GATE_SCALE, batch_metrics, next_gate_scale


def test_too_many_concepts_raise_the_gate_scale_and_too_few_lower_it():
    assert next_gate_scale(2.0, l0=64, target_l0=32, rate=0.1) == pytest.approx(2.0 * math.exp(0.1 * math.log(2)))
    assert next_gate_scale(2.0, l0=16, target_l0=32, rate=0.1) == pytest.approx(2.0 * math.exp(-0.1 * math.log(2)))
    assert next_gate_scale(2.0, l0=32, target_l0=32, rate=0.1) == 2.0


def test_one_step_is_bounded_however_far_the_target_is():
    assert next_gate_scale(1.0, l0=49152, target_l0=16, rate=0.05) == pytest.approx(math.exp(0.05))
    assert next_gate_scale(1.0, l0=0, target_l0=16, rate=0.05) == pytest.approx(math.exp(-0.05))


def test_the_gate_scale_stays_within_its_bounds():
    assert next_gate_scale(MAX_GATE_SCALE, l0=1e6, target_l0=1, rate=1.0) == MAX_GATE_SCALE
    assert next_gate_scale(MIN_GATE_SCALE, l0=0, target_l0=1, rate=1.0) == MIN_GATE_SCALE


def test_it_settles_on_the_target_when_l0_falls_with_the_gate_scale():
    gate_scale = 1.0
    for _ in range(400):
        gate_scale = next_gate_scale(gate_scale, l0=200 / gate_scale, target_l0=32, rate=0.05)
    assert 200 / gate_scale == pytest.approx(32, rel=1e-3)


def test_percentiles_and_threshold_are_values_or_functions_of_nothing():
    l0 = torch.arange(101)
    metrics = batch_metrics(l0, lambda: torch.tensor([0.25, 0.75]), torch.tensor(0.1))
    values = {name: float(value() if callable(value) else value) for name, value in metrics.items()}
    assert (values["l0_p5"], values["l0_p50"], values["l0_p95"]) == (5.0, 50.0, 95.0)
    assert values["tau"] == 0.5
    assert "tau" not in batch_metrics(l0, None, torch.tensor(0.1))
