"""The way a user goes, short: train, load, attach, evaluate, look. CI runs this file on the oldest versions too."""

import json

import pytest
import torch
from sae_lens import SAE, SAETransformerBridge

from sae_lens_sparsemax import SparsemaxSAE
from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.data.quickstart import quickstart_model_path

pytestmark = pytest.mark.slow

SHORT = ("--training_tokens", "8192", "--sae.d_sae", "256")


def run(*words: object) -> None:
    """A command of ours, as from the command line."""
    assert main([str(word) for word in words]) == 0


def test_language_models_from_training_to_pages(tmp_path):
    folder = tmp_path / "sae"
    run("train", "quickstart", *SHORT, "--output_path", folder)
    sae = SAE.load_from_disk(folder)
    assert type(sae) is SparsemaxSAE

    model = SAETransformerBridge.boot_transformers(str(quickstart_model_path()), device="cpu")
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        plain = model(tokens)
        _, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
        spliced = model.run_with_saes(tokens, saes=[sae], use_error_term=True)
    [acts] = [value for name, value in cache.items() if name.endswith("hook_sae_acts_post")]
    assert acts.shape == (1, 20, 256) and 0 < (acts != 0).sum() < acts.numel() / 2
    torch.testing.assert_close(spliced, plain, rtol=1e-3, atol=1e-3)

    x = torch.randn(5, sae.cfg.d_in)
    torch.testing.assert_close(torch.func.vmap(sae)(x), sae(x))
    torch.testing.assert_close(torch.compile(sae, fullgraph=True, backend="aot_eager")(x), sae(x))

    run(
        "evaluate",
        folder,
        "--dataset_split",
        "validation",
        "--batches",
        "2",
        "--output_path",
        tmp_path / "evaluation.json",
    )
    assert json.loads((tmp_path / "evaluation.json").read_text())
    run("explore", folder, "--samples", "20", "--showcase", "2", "--output_path", tmp_path / "pages")
    assert (tmp_path / "pages" / "index.html").is_file()


def test_vision_models_from_training_to_pages(tmp_path):
    folder = tmp_path / "sae"
    run("train", "vision/quickstart_vision", *SHORT, "--output_path", folder)
    assert type(SAE.load_from_disk(folder)) is SparsemaxSAE
    held_out = ("--dataset_path", "quickstart", "--dataset_split", "validation", "--n_images", "64")
    run("evaluate", folder, "--suite", "vision", "--groups", "sparsity", *held_out, "--output_path", tmp_path / "suite")
    run("explore", folder, "--samples", "64", "--showcase", "2", "--output_path", tmp_path / "pages")
    assert (tmp_path / "pages" / "index.html").is_file()
