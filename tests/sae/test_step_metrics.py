"""What a training step reports."""

import torch

from sae_lens_sparsemax.sae.step_metrics import batch_metrics, tokens_l0


def test_l0_counts_non_zeros_of_dense_and_sparse_activations_alike():
    acts = torch.tensor([[0.0, 2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert tokens_l0(acts).tolist() == [2, 0, 3]
    assert tokens_l0(acts.to_sparse()).tolist() == [2, 0, 3]


def test_stored_zeros_are_not_counted():
    acts = torch.sparse_coo_tensor([[0, 0, 1], [0, 2, 1]], [1.0, 0.0, 0.0], (2, 3), is_coalesced=True)
    assert tokens_l0(acts).tolist() == [1, 0]


def test_percentiles_and_threshold_are_values_or_functions_of_nothing():
    acts = (torch.arange(101)[:, None] > torch.arange(100)).float()  # token n has n active concepts
    metrics = batch_metrics(acts, torch.tensor([0.25, 0.75]), torch.tensor(0.1))
    values = {name: float(value() if callable(value) else value) for name, value in metrics.items()}
    assert (values["l0_p5"], values["l0_p50"], values["l0_p95"]) == (5.0, 50.0, 95.0)
    assert values["tau"] == 0.5
    assert "tau" not in batch_metrics(acts, None, torch.tensor(0.1))
