"""The benchmark on a problem small enough for a test: what it runs, not how long it takes."""

import json

import pytest
import torch

from sae_lens_sparsemax.benchmark.__main__ import main
from sae_lens_sparsemax.benchmark.measure import median_seconds
from sae_lens_sparsemax.benchmark.passes import Problem, gate_scale_for
from sae_lens_sparsemax.config import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.training_sae import SparsemaxTrainingSAE


def test_it_prints_a_table_and_writes_figures_and_a_plot(tmp_path, capsys):
    everything = ["sparsemax", "probabilities", "mlp", "topk", "topk_sparse", "naive"]
    sizes = ["--d-sae", "64", "128", "--d-in", "8", "--tokens", "32", "--support", "4"]
    main([*sizes, "--repeats", "1", "--only", *everything, "--output", str(tmp_path)])
    table = capsys.readouterr().out
    assert "| 32 | 128 | 4 |" in table
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert [row["d_sae"] for row in rows] == [64, 128]
    assert all(row[f"{name}_time"] > 0 for row in rows for name in everything)
    assert (tmp_path / "benchmark.png").stat().st_size > 0


def test_the_gate_is_set_to_the_support_asked_for():
    problem = Problem(n_tokens=64, d_in=32, d_sae=1024, support=20)
    sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=32, d_sae=1024, target_l0=None))
    x = problem.activations()
    sae._set_gate_scale(gate_scale_for(sae, x, 20))
    with torch.no_grad():
        assert sae.encode(x).count_nonzero(-1).float().mean().item() == pytest.approx(20, rel=0.05)


def test_the_median_is_over_counted_rounds_only():
    calls = []
    median_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, device="cpu")
    assert calls == ["a", "b"] * 4
