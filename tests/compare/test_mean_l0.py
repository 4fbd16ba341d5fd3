import json
from pathlib import Path

import pytest
import torch
import yaml
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.data.texts import TextData
from sae_lens_sparsemax.evaluation.reconstruction import evaluate_reconstruction
from sae_lens_sparsemax.evaluation.settings import TextSuiteSettings
from sae_lens_sparsemax.evaluation.suite.text import read_tokens
from sae_lens_sparsemax.models.at_hook import open_text
from sae_lens_sparsemax.training.config_file import load_config
from tests.support.tiny_language_model import documents

SETTINGS = {
    "model_name": "tiny",
    "model_class_name": "TransformerBridge",
    "hook_name": "blocks.0.hook_resid_post",
    "dataset_path": "text.jsonl",
    "training_tokens": 40_960,
    "lr": 2e-3,
    "n_batches_in_buffer": 64,
    "output_path": "output/ours",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """What a training leaves besides the SAE: its settings and its log."""
    recorded = load_config(_file(tmp_path, SETTINGS | {"sae": {"d_in": 16, "d_sae": 40, "target_l0": 4}})).config
    (tmp_path / "runner_cfg.json").write_text(json.dumps(recorded.to_dict()))
    lines = [{"step": i, "n_training_samples": i, "metrics/l0": 30 - i} for i in range(1, 21)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def _file(folder: Path, settings) -> Path:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_k_is_the_mean_l0_at_the_end_of_training_and_both_files_train(folder, capsys):
    assert main(["suggest-k", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "14.50 (mean of the last 10 logged training steps)" in printed  # 30 - (11 + ... + 20) / 10
    for architecture, k in (("topk", 14), ("batchtopk", 14.5)):
        path = folder / "suggested" / f"{architecture}.yaml"
        assert f"sparsemax-sae train {path}" in printed
        config = load_config(path).config
        assert (config.sae.architecture(), config.sae.k, config.sae.d_sae) == (architecture, k, 40)
        assert (config.lr, config.training_tokens) == (2e-3, 40_960)
        # Beside the SAE that they are compared with, not over it.
        assert config.output_path == f"output/ours_{architecture}"
        assert config.checkpoint_path == f"output/ours_{architecture}/checkpoints"


def test_k_can_be_measured_on_held_out_text(folder, tiny_model_folder, capsys):
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents(10)))
    torch.manual_seed(1)
    metadata = SAEMetadata(
        model_name=str(tiny_model_folder),
        model_class_name="TransformerBridge",
        hook_name=SETTINGS["hook_name"],
        context_size=12,
        prepend_bos=True,
    )
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=40, metadata=metadata))
    sae.save_model(folder)
    assert main(["suggest-k", str(folder), "--datasets.some.path", str(text), "--n_tokens", "96"]) == 0
    tokens = read_tokens(
        open_text(sae), TextData(str(text)), TextSuiteSettings(context_size=12, n_tokens=96, n_prediction_tokens=1)
    )
    mean = evaluate_reconstruction(sae, tokens.activations()).l0
    assert f"{mean:.2f} (measured on some)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        ("runner_cfg.json", [], "give --settings FILE"),
        ("metrics.jsonl", [], "give --dataset_path or --datasets.NAME.path to measure on, or --l0"),
        (None, ["--l0", "0.2"], "between 1 and d_sae = 40, got 0.2"),
        (None, ["--settings", "absent.yaml"], "There is no file 'absent.yaml'"),
    ],
)
def test_what_is_missing_is_said(folder, capsys, missing, arguments, message):
    if missing is not None:
        (folder / missing).unlink()
    assert main(["suggest-k", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_known_l0_and_other_settings_need_no_log(folder, capsys):
    (folder / "metrics.jsonl").unlink()
    settings = _file(folder, SETTINGS | {"sae": {"d_sae": 64}})
    output = folder / "elsewhere"
    words = ["suggest-k", str(folder), "--l0", "7.6", "--settings", str(settings)]
    assert main([*words, "--output_path", str(output)]) == 0
    assert load_config(output / "topk.yaml").config.sae.k == 8
