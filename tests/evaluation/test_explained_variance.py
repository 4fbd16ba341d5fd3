"""One name, one definition: what is called explained variance is the same figure in every command."""

import json

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.saes.sae import SAEMetadata, TrainStepOutput
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.sae_trainer import SAETrainer

from sae_lens_sparsemax.cli.main import main
from sae_lens_sparsemax.evaluation.harness import TextEvaluator, open_contexts
from sae_lens_sparsemax.evaluation.reconstruction import EXPLAINED_VARIANCE, evaluate_reconstruction
from sae_lens_sparsemax.evaluation.settings import EvaluationSettings
from sae_lens_sparsemax.evaluation.vision_evaluator import VisionEvaluator
from sae_lens_sparsemax.explore.gather import gather
from sae_lens_sparsemax.explore.run import open_stream
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.models.vision_at_hook import VisionAtHook
from sae_lens_sparsemax.training.trainer import adapt
from tests.support.tiny_language_model import documents

CONTEXT = 12


def by_hand(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    x, x_hat = x.double(), x_hat.double()
    return (1 - (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()


@torch.no_grad()
def test_every_command_on_text_gives_the_same_figure_under_the_same_name(tmp_path, tiny_model_folder, capsys):
    text, folder = tmp_path / "text.jsonl", tmp_path / "sae"
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents(5)))
    torch.manual_seed(1)
    metadata = SAEMetadata(
        model_name=str(tiny_model_folder),
        model_class_name="TransformerBridge",
        hook_name="blocks.0.hook_out",
        context_size=CONTEXT,
        prepend_bos=True,
        exclude_special_tokens=True,
        dataset_path=str(text),
    )
    StandardSAE(StandardSAEConfig(d_in=16, d_sae=40, metadata=metadata)).save_model(folder)
    sae = load_sae(str(folder))
    at_hook, store, _ = open_contexts(sae, EvaluationSettings())
    tokens = torch.stack(list(store.iterable_sequences))
    acts = at_hook.activations(tokens)
    x = acts[at_hook.is_read(tokens, acts)]
    assert 100 < len(x) < tokens.numel()
    expected, n = by_hand(x, sae(x)), str(len(tokens))

    found = {}
    assert main(["evaluate", str(folder), "--batches", "1", "--batch_size", n]) == 0
    printed = capsys.readouterr().out
    result = json.loads((folder / "evaluation.json").read_text())
    found["evaluate"] = result["reconstruction"]["explained_variance"]
    found["run_evals"] = result["saelens"]["reconstruction_quality"]["explained_variance"]
    suite = ["--suite", "text", "--datasets.t.path", str(text), "--n_tokens", str(tokens.numel())]
    assert main(["evaluate", str(folder), *suite, "--groups", "t/reconstruction"]) == 0
    printed_by_suite = capsys.readouterr().out
    groups = json.loads((folder / "evaluation" / "text" / "results.json").read_text())["groups"]
    found["suite"] = groups["t/reconstruction"]["reconstruction"]["explained_variance"]
    stream = open_stream(sae, ExploreSettings(samples=len(tokens)))
    statistics = gather(sae, stream, n_examples=2, n_showcase=1, progress=False)
    found["explore"] = statistics.reconstruction.result().explained_variance
    during = TextEvaluator(at_hook.model, store.dataset, CONTEXT, len(tokens), 1)(sae, None, ActivationScaler())
    found["while training"] = during["reconstruction_quality"]["explained_variance"]
    found["compare"] = evaluate_reconstruction(sae, [x]).explained_variance
    theirs = ExplainedVarianceCalculator()  # what SAELens's synthetic evaluation uses
    theirs.add_batch(sae(x), x)
    found["synthetic"] = theirs.compute()
    assert found == pytest.approx(dict.fromkeys(found, expected), rel=1e-5, abs=1e-5)
    for table in (printed, printed_by_suite):
        assert EXPLAINED_VARIANCE in table


@torch.no_grad()
def test_images_too(tiny_clip, pixels):
    torch.manual_seed(2)
    sae, at_hook = (
        StandardSAE(StandardSAEConfig(d_in=32, d_sae=64)),
        VisionAtHook(tiny_clip, "blocks.1.hook_resid_post"),
    )
    x = at_hook.activations(pixels).flatten(0, 1)
    found = VisionEvaluator(at_hook, pixels.split(2))(sae)["explained_variance"]
    assert found == pytest.approx(by_hand(x, sae(x)), abs=1e-6)
    assert found == pytest.approx(evaluate_reconstruction(sae, [x]).explained_variance, abs=1e-6)


@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in", "covariance_whitening"])
def test_the_log_of_a_training_measures_activations_however_they_are_scaled(normalize):
    torch.manual_seed(3)
    x = torch.randn(256, 8) * torch.linspace(0.1, 5, 8) + 2
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=8, d_sae=32, k=2, normalize_activations=normalize))
    settings = {"total_training_samples": 256, "train_batch_size_samples": 256, "lr": 1e-3, "lr_end": 1e-4}
    trainer = adapt(SAETrainer(SAETrainerConfig(**settings), sae, iter([x] * 10)))
    scaler = trainer.activation_scaler
    if normalize == "expected_average_only_in":
        scaler.estimate_scaling_factor(8, iter([x]), 1)
    elif normalize == "covariance_whitening":
        scaler.estimate_whitening(8, iter([x]), 1)
    with torch.no_grad():
        seen = scaler.scale(x)
        acts = sae.encode(seen)
        out = sae.decode(acts)
        output = TrainStepOutput(seen, out, acts, acts, torch.zeros(()), {})
        logged = trainer.build_train_step_log_dict(output, 256)
        x_hat = scaler.unscale(out)
    assert logged["metrics/explained_variance"] == pytest.approx(by_hand(x, x_hat), abs=1e-4)
    legacy = 1 - (x - x_hat).pow(2).sum(-1) / (x - x.mean(0)).pow(2).sum(-1)
    assert logged["metrics/explained_variance_legacy"] == pytest.approx(legacy.mean().item(), rel=1e-3)
