"""The benchmark of training steps on a small model: what it runs and prints, not how long it takes."""

import json
import subprocess
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE

from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.training.config_file import load_config
from tests.benchmark import measure as measuring
from tests.benchmark import training
from tests.benchmark.forms import FORMS, config_of, label, select
from tests.benchmark.training_step import SHARES, measure
from tests.support.members import slow_but

SMALL = {
    "train_batch_size_tokens": 128,
    "store_batch_size_prompts": 2,
    "n_batches_in_buffer": 4,
    "sae.d_sae": 64,
    "sae.target_l0": 8,
}
OWN = SparsemaxTrainingSAEConfig(d_in=12, d_sae=80, target_l0=6, dtype="float64", apply_b_dec_to_input=False)


@pytest.mark.parametrize("form", slow_but(("sparsemax", "jumprelu"), FORMS))
def test_every_form_is_trained_at_the_target_and_its_parts_add_up(form):
    cost = measure(load_config("quickstart", SMALL).config, form, 5)
    assert sum(cost["shares"].values()) == pytest.approx(1)
    assert all(cost["shares"][part] > 0 for part in SHARES)
    assert cost["l0"] == pytest.approx(8, rel=0.3)
    assert cost["step_seconds"] > 0 and cost["tokens_per_second"] > 0 and 0 < cost["peak_gb"] < 20


@pytest.mark.parametrize("form", FORMS)
def test_forms_share_size_type_and_inputs(form):
    cfg = config_of(form, OWN)
    shared = ("d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input", "normalize_activations")
    assert [getattr(cfg, name) for name in shared] == [getattr(OWN, name) for name in shared]


@pytest.mark.parametrize("form", ["sparsemax", "one_pass", "topk", "batchtopk", "jumprelu"])
def test_forms_select_as_many_concepts_as_the_target_says(form):
    torch.manual_seed(0)
    sae: TrainingSAE[Any] = TrainingSAE.from_dict(config_of(form, OWN).to_dict())
    x = torch.randn(64, 12, dtype=torch.float64)
    select(sae, x, 6)
    with torch.no_grad():
        acts = sae.encode(x)
    assert (acts.to_dense() != 0).sum(-1).double().mean().item() == pytest.approx(6, abs=0.2)


def test_one_pass_is_the_configuration_with_one_and_only_the_default_is_called_so():
    one_pass = config_of("one_pass", OWN)
    assert isinstance(one_pass, SparsemaxTrainingSAEConfig)
    assert (one_pass.passes, one_pass.refinements, one_pass.alpha) == (1, 0, OWN.alpha)
    assert (label("sparsemax", OWN), label("sparsemax", one_pass)) == ("the default", "as configured")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sae.target_l0", "null", "--only", "topk"], "sae.target_l0 must be a number for the form 'topk', got None"),
        (["--sae.target_l0", "7.5", "--only", "topk"], "must be a whole number for the form 'topk', got 7.5"),
        (["--steps", "3"], "--steps must be larger than 3, got 3"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        training.main(["quickstart", *words])
    assert message in capsys.readouterr().err


def test_a_run_on_anything_but_text_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        training.main(["quickstart_vision"])
    message = "config must be a text run of a sparsemax SAE, got runner 'vision' and architecture 'sparsemax'"
    assert message in capsys.readouterr().err


def test_each_form_is_measured_in_a_process_with_the_same_options(monkeypatch, capsys):
    cost = {
        "step_seconds": 0.1,
        "tokens_per_second": 1e3,
        "peak_gb": 1.0,
        "l0": 8.0,
        "shares": dict.fromkeys(SHARES, 0.2),
    }
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=f"noise\n{json.dumps(cost)}\n".encode())

    monkeypatch.setattr(training.subprocess, "run", run)
    monkeypatch.setattr(training, "use_machine", lambda *_: None)
    options = ["--only", "sparsemax", "topk", "--screening", "never", "--threads", "1", "--lr", "1e-3"]
    training.main(["quickstart", *options])
    assert [command[-2:] for command in commands] == [["--form", "sparsemax"], ["--form", "topk"]]
    assert all({"--screening=never", "--threads=1", "--set=lr=1e-3", "--steps=20"} < set(each) for each in commands)
    printed = capsys.readouterr().out
    assert "| the default | 100 ms | 1,000 | 1.00 GB | 8.0 | 20% |" in printed and "| SAELens TopK, sparse |" in printed


def test_a_gpu_is_waited_for_and_its_memory_counted(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    measuring.wait("cpu")
    assert not waited
    measuring.wait("cuda:0")
    assert waited and measuring.peak_bytes("cuda") == 123 < measuring.peak_bytes()
