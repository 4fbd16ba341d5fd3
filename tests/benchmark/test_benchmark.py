"""The benchmark on a problem small enough for a test: what it runs, not how long it takes."""

import json
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepInput

from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.sae.training import SparsemaxTrainingSAE
from tests.benchmark.__main__ import main
from tests.benchmark.forms import gate_scale_for
from tests.benchmark.measure import median_seconds, peak_extra_bytes
from tests.benchmark.naive import NaiveTrainingSAE
from tests.benchmark.passes import Problem


@pytest.mark.slow
@pytest.mark.usefixtures("pictures")
def test_it_prints_a_table_and_writes_figures_and_a_plot(tmp_path, capsys):
    everything = ["sparsemax", "probabilities", "mlp", "topk", "topk_sparse", "naive"]
    sizes = ["--d_sae", "64", "128", "--d_in", "8", "4", "--tokens", "32", "16", "--support", "4"]
    main([*sizes, "--repeats", "1", "--only", *everything, "--output_path", str(tmp_path)])
    table = capsys.readouterr().out
    assert "| 32 | 8 | 128 | 4 |" in table
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    sizes = [(row["d_sae"], row["n_tokens"], row["d_in"]) for row in rows]
    assert sizes == [(64, 32, 8), (128, 32, 8), (128, 16, 8), (128, 32, 4)]
    assert all(row[f"{name}_time"] > 0 for row in rows for name in everything)
    assert (tmp_path / "benchmark.png").stat().st_size > 0


def test_the_gate_is_set_to_the_support_asked_for():
    problem = Problem(n_tokens=64, d_in=32, d_sae=1024, support=20)
    sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=32, d_sae=1024, target_l0=None))
    x = problem.activations()
    sae.gate_scale = gate_scale_for(sae, x, 20)
    with torch.no_grad():
        assert sae.encode(x).count_nonzero(-1).float().mean().item() == pytest.approx(20, rel=0.05)


def test_the_median_is_over_counted_rounds_only():
    calls = []
    median_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, device="cpu")
    assert calls == ["a", "b"] * 4


@pytest.mark.parametrize("activations", ["scores", "probabilities"])
@pytest.mark.parametrize("query_projection", [False, True])
def test_the_naive_form_is_the_same_function_with_the_same_gradients(activations, query_projection):
    cfg = SparsemaxTrainingSAEConfig(
        d_in=16, d_sae=96, activations=activations, query_projection=query_projection, target_l0=None, dtype="float64"
    )
    torch.manual_seed(0)
    ours = SparsemaxTrainingSAE(cfg)
    naive = NaiveTrainingSAE(cfg)
    naive.load_state_dict(ours.state_dict())
    both: list[TrainingSAE[Any]] = [ours, naive]
    step = TrainStepInput(torch.randn(24, 16, dtype=torch.float64), {}, None, 0, False)
    outputs = [sae.training_forward_pass(step) for sae in both]
    for output in outputs:
        output.loss.backward()
    torch.testing.assert_close(outputs[0].feature_acts.to_dense(), outputs[1].feature_acts.to_dense())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, naive.get_parameter(name).grad, rtol=1e-9, atol=1e-10)


def test_peak_memory_is_what_lived_at_once_besides_what_was_there_before():
    mebi = 2**20
    kept = torch.zeros(3 * mebi // 4)

    def run() -> None:
        nonlocal kept
        kept = torch.zeros(0)
        kept = torch.zeros(3 * mebi // 4)
        for _ in range(2):
            held = torch.ones(mebi // 4)
            (held + 1).sum()

    assert peak_extra_bytes(run, "cpu") == pytest.approx(2 * mebi, rel=0.01)
