"""The benchmark of encoding on tiny SAEs: what it runs and prints, not how long it takes."""

import re

import pytest
import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, JumpReLUSAE, TopKSAE

from sae_lens_sparsemax.attention import screening
from sae_lens_sparsemax.sae.config import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.sae.inference import SparsemaxSAE
from tests.benchmark.encoding import main
from tests.benchmark.forms import for_evaluation

SIZES = ["--d_sae", "64", "128", "--d_in", "16", "--tokens", "32", "--support", "5", "--repeats", "1"]


def test_tokens_per_second_and_ratios_are_printed_for_every_size(capsys, monkeypatch):
    monkeypatch.setitem(screening.SCREEN, "cpu", None)
    main([*SIZES, "--screening", "never"])
    assert screening.SCREEN["cpu"] is False
    machine, header, _, *rows = capsys.readouterr().out.splitlines()
    assert "tokens per second, time / score product" in machine
    assert header.endswith("| one pass | the default | SAELens TopK | SAELens JumpReLU, BatchTopK |")
    assert [row.split(" | ")[2:4] for row in rows] == [["64", "5"], ["128", "5"]]
    assert all(len(re.findall(r"\| [\d.]+ [kM]/s, [\d.]+×", row)) == 4 for row in rows)


def test_only_what_is_asked_for_is_measured(capsys):
    main([*SIZES, "--only", "jumprelu"])
    assert "pass" not in capsys.readouterr().out


def test_a_support_as_large_as_the_dictionary_is_refused():
    with pytest.raises(SystemExit, match="--d_sae must be larger than --support 64, got 64"):
        main(["--d_sae", "128", "64", "--support", "64"])


@pytest.mark.parametrize(
    ("form", "loaded_as"),
    [("one_pass", SparsemaxSAE), ("sparsemax", SparsemaxSAE), ("topk", TopKSAE), ("jumprelu", JumpReLUSAE)],
)
def test_what_is_measured_is_the_loaded_sae_with_as_many_concepts_as_asked_for(form, loaded_as):
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(0))
    sae = for_evaluation(form, SparsemaxTrainingSAEConfig(d_in=24, d_sae=256, target_l0=12), x)
    assert type(sae) is loaded_as
    with torch.no_grad():
        assert sae.encode(x).count_nonzero(-1).float().mean().item() == pytest.approx(12, abs=0.5)


def test_batchtopk_is_a_jumprelu_once_it_is_saved(tmp_path):
    """So that one column stands for both."""
    BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=8, d_sae=32, k=4)).save_inference_model(tmp_path)
    assert type(SAE.load_from_disk(tmp_path)) is JumpReLUSAE
