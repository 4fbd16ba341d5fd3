"""SAELens's evaluation harness, with every metric on."""

import math

import pytest
import torch
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig
from sae_lens.synthetic.evals import eval_sae_on_synthetic_data
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_sparsemax import SparsemaxSAE, SparsemaxSAEConfig
from tests.support.host_training import new_config, trainer_of

pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")


def evaluate(sae, model, dataset):
    store = ActivationsStore.from_sae(model, sae, dataset, context_size=64, store_batch_size_prompts=8)
    everything = get_eval_everything_config(8, n_eval_reconstruction_batches=2, n_eval_sparsity_variance_batches=2)
    return run_evals(sae, store, model, ActivationScaler(), everything)


@pytest.mark.parametrize("form", ["inference", "training"])
def test_every_metric_is_finite_and_plausible(form, trained, inference_folder, model, token_dataset, activations):
    sae = SAE.load_from_disk(inference_folder) if form == "inference" else trained
    metrics, by_concept = evaluate(sae, model, token_dataset)
    for group in metrics.values():
        for name, value in group.items():
            assert math.isfinite(value), name
    assert set(metrics) == {
        "model_behavior_preservation",
        "model_performance_preservation",
        "reconstruction_quality",
        "shrinkage",
        "sparsity",
        "token_stats",
    }
    assert 0.3 < metrics["reconstruction_quality"]["explained_variance"] < 1
    assert 0 < metrics["model_performance_preservation"]["ce_loss_score"] < 1
    # The harness measures sparsity on the 16 contexts after those of the reconstruction.
    with torch.no_grad():
        l0 = sae.encode(activations[16 * 63 : 32 * 63]).count_nonzero(-1).float().mean().item()
    assert metrics["sparsity"]["l0"] == pytest.approx(l0, rel=1e-3)
    for name in ("feature_density", "encoder_norm", "encoder_bias", "encoder_decoder_cosine_sim"):
        assert len(by_concept[name]) == 512
    assert sum(by_concept["feature_density"]) == pytest.approx(l0, rel=1e-3)


def test_probabilities_evaluate_too(model, token_dataset, activations, tmp_path):
    config = new_config(activations="probabilities", unit_norm_query=True, target_l0=24.0)
    trainer_of(config, activations, 20).fit().save_inference_model(tmp_path)
    metrics, _ = evaluate(SAE.load_from_disk(tmp_path), model, token_dataset)
    assert math.isfinite(metrics["model_performance_preservation"]["ce_loss_score"])


def test_ground_truth_is_found_by_an_sae_that_holds_it():
    """Decoder and encoder set to the true features recover them; random ones do not."""
    synthetic = SyntheticModel(SyntheticModelConfig(num_features=24, hidden_dim=32))

    def score(vectors: torch.Tensor):
        cfg = SparsemaxSAEConfig(d_in=32, d_sae=24, unit_norm_query=False, gate_scale=4.0)
        sae = SparsemaxSAE(cfg)
        sae.W_dec.data, sae.W_enc.data = vectors.clone(), vectors.T.clone()
        return eval_sae_on_synthetic_data(
            sae, synthetic.feature_dict, synthetic.activation_generator, num_samples=2048, batch_size=512
        )

    true = score(synthetic.feature_dict.feature_vectors.detach())
    random = score(torch.nn.functional.normalize(torch.randn(24, 32), dim=-1))
    assert true.mcc == pytest.approx(1, abs=1e-4) and random.mcc < 0.8
    assert true.classification.f1_score > random.classification.f1_score + 0.3
