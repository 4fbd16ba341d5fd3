"""What of a saved SAE's configuration is taken, and what is refused."""

from dataclasses import replace

import pytest
import torch
from sae_lens import JumpReLUTrainingSAEConfig, StandardSAE, StandardSAEConfig, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.synthetic import SyntheticModelConfig

from sae_lens_sparsemax import SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.models.saved_saes import load_sae, load_training_sae
from sae_lens_sparsemax.training.config import SyntheticRunnerConfig
from sae_lens_sparsemax.training.synthetic_runner import SyntheticTrainingRunner


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("l0", [0.0, 3.5, None])
def test_what_saelens_saves_is_loaded(tmp_path, normalisation, l0):
    """An SAE none of whose concepts is active has an L0 of 0."""
    metadata = SAEMetadata(l0=l0)
    config = StandardSAEConfig(d_in=4, d_sae=8, normalize_activations=normalisation, metadata=metadata)
    StandardSAE(config).save_model(tmp_path)
    loaded = load_sae(str(tmp_path)).cfg
    assert (loaded.normalize_activations, loaded.metadata.l0) == (normalisation, l0)


@pytest.mark.parametrize(("name", "value"), [("l0", -1.0), ("max_norm", 0.0), ("context_size", 0)])
def test_metadata_that_cannot_be_are_refused(tmp_path, name, value):
    config = StandardSAEConfig(d_in=4, d_sae=8, metadata=SAEMetadata(**{name: value}))
    StandardSAE(config).save_model(tmp_path)
    with pytest.raises(ValueError, match=rf"metadata\.{name} must be .*, got {value}"):
        load_sae(str(tmp_path))


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("normalisation", ["expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize(
    "sae",
    [
        SparsemaxTrainingSAEConfig(d_in=8, d_sae=16, target_l0=3, unit_norm_query=False),
        SparsemaxTrainingSAEConfig(d_in=8, d_sae=16, target_l0=3, structure="mlp", unit_norm_query=False),
        TopKTrainingSAEConfig(d_in=8, d_sae=16, k=3),
        JumpReLUTrainingSAEConfig(d_in=8, d_sae=16),
    ],
    ids=["sparsemax", "mlp", "topk", "jumprelu"],
)
def test_an_sae_of_a_checkpoint_takes_activations_as_they_are(sae, normalisation, tmp_path):
    cfg = SyntheticRunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=16, hidden_dim=8, seed=1),
        sae=replace(sae, normalize_activations=normalisation),
        training_samples=320,
        batch_size=32,
        n_checkpoints=9,  # the last one after the last step
        n_batches_for_norm_estimate=4,
        run_final_eval=False,
        output_path=str(tmp_path),
        checkpoint_path=str(tmp_path / "checkpoints"),
        logger=LoggingConfig(log_to_wandb=False),
    )
    SyntheticTrainingRunner(cfg).run()
    found, last = load_sae(str(tmp_path / "checkpoints" / "320")), load_sae(str(tmp_path))
    assert found.cfg.normalize_activations == last.cfg.normalize_activations == "none"
    acts = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found.encode(acts) != 0, last.encode(acts) != 0)
        torch.testing.assert_close(found(acts), last(acts), rtol=1e-4, atol=1e-4)
    # Training goes on with what it was trained on.
    assert load_training_sae(str(tmp_path / "checkpoints" / "320")).cfg.normalize_activations == normalisation
