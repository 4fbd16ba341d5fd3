import pytest
import torch
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_sparsemax.evaluation.predictions import evaluate_divergence
from sae_lens_sparsemax.models.at_hook import TextAtHook
from tests.evaluation.test_cross_entropy import folder, hooked_transformer, proxy, sae_and_store

__all__ = ["folder"]


@pytest.mark.parametrize("host", [proxy, hooked_transformer])
@pytest.mark.parametrize("ignored", [[], [0]])
def test_divergence_equals_that_of_run_evals(folder, host, ignored):
    model, hook_name = host(folder)
    sae, store = sae_and_store(model, hook_name)
    batches = [store.get_batch_tokens(4) for _ in range(3)]
    sae, store = sae_and_store(model, hook_name)  # from the start of the data again
    theirs, _ = run_evals(
        sae,
        store,
        model,
        ActivationScaler(),
        EvalConfig(batch_size_prompts=4, n_eval_reconstruction_batches=3, compute_kl=True),
        exclude_special_tokens=ignored or False,
    )
    ours = evaluate_divergence(TextAtHook(sae, model, hook_name, ignored), batches, progress=False)
    theirs = theirs["model_behavior_preservation"]
    assert ours.n_positions == sum(int((~torch.isin(batch, torch.tensor(ignored))).sum()) for batch in batches)
    assert ours.kl_with_sae == pytest.approx(theirs["kl_div_with_sae"], rel=1e-5)
    assert ours.kl_zero_ablation == pytest.approx(theirs["kl_div_with_ablation"], rel=1e-5)
    assert ours.kl_score == pytest.approx(theirs["kl_div_score"], rel=1e-4, abs=1e-6)
    assert ours.kl_with_sae > 1e-3


def test_nothing_replaced_is_no_divergence(folder):
    model, hook_name = proxy(folder)
    sae, store = sae_and_store(model, hook_name)
    at_hook = TextAtHook(sae, model, hook_name, [], max_norm=0)
    metrics = evaluate_divergence(at_hook, [store.get_batch_tokens(4)], progress=False)
    assert metrics.kl_with_sae == 0
    assert metrics.kl_score == 1


def test_no_positions_are_refused(folder):
    model, hook_name = proxy(folder)
    sae, _ = sae_and_store(model, hook_name)
    with pytest.raises(ValueError, match="no positions"):
        evaluate_divergence(TextAtHook(sae, model, hook_name, []), [], progress=False)
