"""SAELens's trainer: autocast, checkpoints and resume, normalisations, bad data."""

import pytest
import torch
from sae_lens import SAE

from sae_lens_sparsemax import SparsemaxTrainingSAE
from tests.support.host_training import HOOK, first_batches, fraction_explained, new_config, stream, trainer_of


def assert_equal_training_states(one, other):
    """Weights, gate, optimiser, schedules and statistics, to the bit."""
    for name, value in one.sae.state_dict().items():
        assert torch.equal(value, other.sae.state_dict()[name]), name
    assert one.sae.cfg.gate_scale == other.sae.cfg.gate_scale
    moments, others = one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    assert moments.keys() == others.keys() and moments
    for index, state in moments.items():
        for name, value in state.items():
            assert torch.equal(value, others[index][name]), (index, name)
    assert one.lr_scheduler.state_dict() == other.lr_scheduler.state_dict()
    assert torch.equal(one.act_freq_scores, other.act_freq_scores)
    assert torch.equal(one.n_forward_passes_since_fired, other.n_forward_passes_since_fired)
    # Not n_training_steps: SAELens writes a checkpoint before it counts that step.
    assert one.n_training_samples == other.n_training_samples


def test_a_short_run_explains_most_of_the_residual_stream_at_the_target(trained, activations):
    with torch.no_grad():
        l0 = trained.encode(activations).count_nonzero(-1).float()
    assert l0.mean().item() == pytest.approx(12, rel=0.15)
    assert l0.quantile(0.95) > 1.5 * l0.quantile(0.05)
    assert fraction_explained(trained, activations) > 0.5
    assert trained.cfg.metadata.l0 > 0


@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
def test_a_run_resumed_from_a_checkpoint_continues_to_the_bit(structure, activations, tmp_path):
    config = new_config(structure=structure)
    settings = {"lr_scheduler_name": "cosineannealing", "lr_warm_up_steps": 3}
    torch.manual_seed(0)
    whole = trainer_of(config, activations, 12, n_checkpoints=1, checkpoint_path=str(tmp_path), **settings)
    whole.fit()
    (checkpoint,) = tmp_path.iterdir()

    torch.manual_seed(99)
    resumed = trainer_of(config, activations, 12, start=int(checkpoint.name) // 256, **settings)
    resumed.load_trainer_state(checkpoint)
    resumed.sae.load_weights_from_checkpoint(checkpoint)
    assert resumed.sae.cfg.gate_scale != 1.0
    resumed.fit()
    assert_equal_training_states(whole, resumed)


@pytest.mark.parametrize("query", ["unit norm", "raw"])
def test_autocast_selects_what_float32_selects(query, activations):
    sae = trainer_of(new_config(unit_norm_query=query == "unit norm"), activations, 6).fit()
    x = activations[:512]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cast, reconstruction = sae.encode(x), sae(x)
    with torch.no_grad():
        exact = sae.encode(x)
    assert torch.equal(cast, exact)
    torch.testing.assert_close(reconstruction, sae(x), rtol=0.05, atol=0.2)


def test_the_trainer_under_autocast_selects_the_same_supports_in_every_step(activations):
    """The batches' activations, recomputed in float32 from the weights of that very step."""
    trainer = trainer_of(new_config(), activations, 5, autocast=True)
    for batch in first_batches(activations, 5):
        with torch.no_grad():
            trainer.sae._initialise_b_dec(batch)
            expected = trainer.sae.encode(batch)
        output = trainer.step(batch)
        acts = output.feature_acts.to_dense() if output.feature_acts.is_sparse else output.feature_acts
        assert torch.equal(acts != 0, expected != 0)
        assert output.loss.dtype == torch.float32
        trainer.n_training_steps += 1


def test_autocast_trains_about_as_well(activations, trained):
    torch.manual_seed(0)
    cast = trainer_of(new_config(), activations, 40, autocast=True).fit()
    assert fraction_explained(cast, activations) > fraction_explained(trained, activations) - 0.03


@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
@pytest.mark.parametrize("unit_norm_query", [True, False])
def test_expected_average_norm_trains_and_folds_exactly(structure, unit_norm_query, activations, monkeypatch):
    config = new_config(
        structure=structure, unit_norm_query=unit_norm_query, normalize_activations="expected_average_only_in"
    )
    assert_folding_changes_nothing(config, activations, monkeypatch)


@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
def test_whitening_trains_and_folds_exactly_with_raw_queries(structure, activations, monkeypatch):
    config = new_config(structure=structure, unit_norm_query=False, normalize_activations="covariance_whitening")
    assert_folding_changes_nothing(config, activations, monkeypatch)


def assert_folding_changes_nothing(config, activations, monkeypatch):
    """What the trained SAE computes on raw activations is what it computed on normalised ones, then undone."""
    trainer = trainer_of(config, activations, 10)
    x, seen = activations[:300], {}

    def noting(name, fold):
        def call(*args, **kwargs):
            with torch.no_grad():
                scaled = trainer.activation_scaler.scale(x)
                seen["acts"] = trainer.sae.encode(scaled)
                seen["out"] = trainer.activation_scaler.unscale(trainer.sae(scaled))
            fold(*args, **kwargs)

        monkeypatch.setattr(trainer.sae, name, call)

    for name in ("fold_activation_norm_scaling_factor", "fold_activation_whitening"):
        noting(name, getattr(trainer.sae, name))
    sae = trainer.fit()
    assert sae.cfg.normalize_activations == "none"
    with torch.no_grad():
        differs = ((sae.encode(x) != 0) != (seen["acts"] != 0)).any(-1)
        # Weights are rounded once more by the fold, so a score may cross τ now and then.
        assert differs.float().mean() < 0.02
        torch.testing.assert_close(sae(x)[~differs], seen["out"][~differs], rtol=1e-3, atol=2e-3)


def test_layer_norm_trains_and_is_undone_after_loading(activations, tmp_path):
    trained = trainer_of(new_config(normalize_activations="layer_norm"), activations, 40).fit()
    assert fraction_explained(trained, activations) > 0.5
    trained.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert loaded.cfg.normalize_activations == "layer_norm"
    torch.testing.assert_close(loaded(activations[:99]), trained(activations[:99]), rtol=1e-3, atol=1e-3)


def test_bad_activations_stop_the_run_with_hook_and_step_and_leave_the_weights(activations):
    sae = SparsemaxTrainingSAE(new_config())
    trainer = trainer_of(sae, activations, 10)

    def poisoned():
        for step, batch in enumerate(stream(activations)):
            if step == 3:
                batch = batch.clone()
                batch[5, 7] = float("nan")
            yield batch

    trainer.data_provider = poisoned()
    with pytest.raises(ValueError, match=f"activations at {HOOK} in training step 4 are not finite: 1 of 256 tokens"):
        trainer.fit()
    assert all(torch.isfinite(value).all() for value in sae.state_dict().values())


def test_compiling_the_training_pass_changes_no_number(activations):
    losses = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        trainer = trainer_of(new_config(), activations, 5)
        if compiled:  # as SAELens does for compile_sae=True
            trainer.sae.training_forward_pass = torch.compile(trainer.sae.training_forward_pass, mode="max-autotune")
        losses[compiled] = [trainer.step(batch).loss.item() for batch in first_batches(activations, 5)]
    assert losses[True] == losses[False]


def test_hooks_set_during_training_see_dense_activations_and_can_be_taken_off(activations):
    trainer = trainer_of(new_config(), activations, 4)
    seen = []
    batches = first_batches(activations, 4)
    trainer.step(batches[0])
    trainer.sae.add_hook("hook_sae_acts_post", lambda tensor, hook: seen.append(tensor.detach()))
    output = trainer.step(batches[1])
    assert seen[0].shape == (256, 512) and not seen[0].is_sparse
    assert torch.equal(seen[0], output.feature_acts.detach().to_dense())
    trainer.sae.reset_hooks()
    trainer.step(batches[2])
    assert len(seen) == 1


def test_what_is_logged_names_sparsity_gate_and_threshold(activations):
    trainer = trainer_of(new_config(), activations, 4)
    output = trainer.step(next(trainer.data_provider))
    logged = trainer.build_train_step_log_dict(output=output, n_training_samples=256)
    for name in ("l0", "l0_p5", "l0_p50", "l0_p95", "gate_scale", "score_std", "explained_variance"):
        assert isinstance(logged[f"metrics/{name}"], float), name
    assert "sparsity/dead_features" in logged
