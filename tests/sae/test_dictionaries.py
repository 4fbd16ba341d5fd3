"""Computed matrices: read like any tensor, and never written to in vain."""

import copy
import io
import pickle

import pytest
import safetensors.torch
import torch
from sae_lens.synthetic import FeatureDictionary, init_sae_to_match_feature_dict
from torch import nn

from sae_lens_sparsemax import SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from tests.support.small_sae import D_IN, D_SAE, inputs, small_sae, step_input

WRITES = {
    "item": lambda W: W.__setitem__(0, 1.0),
    "item of data": lambda W: W.data.__setitem__((slice(None), slice(2)), 1.0),
    "item of a view": lambda W: W.detach().T[1].__setitem__(0, 1.0),
    "in-place operator": lambda W: W.data.__imul__(2),
    "in-place method": lambda W: W.data.div_(2),
    "initialisation": lambda W: nn.init.zeros_(W),
    "out": lambda W: torch.mul(torch.ones(1), 2, out=W),
    "data": lambda W: setattr(W, "data", torch.zeros_like(W)),
}


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_to_a_computed_matrix_is_refused(name, write):
    sae = small_sae()
    before = copy.deepcopy(sae.state_dict())
    with torch.no_grad(), pytest.raises(ValueError, match="would change a temporary and nothing else"):
        write(getattr(sae, name))
    torch.testing.assert_close(sae.state_dict(), before, rtol=0, atol=0)


def test_replacing_a_computed_matrix_is_refused():
    with pytest.raises((AttributeError, KeyError), match="W_dec"):
        small_sae().W_dec = torch.zeros(D_SAE, D_IN)
    with pytest.raises((AttributeError, KeyError), match="W_dec"):
        small_sae().W_dec = nn.Parameter(torch.zeros(D_SAE, D_IN))


def test_the_hosts_initialisation_from_features_is_no_silent_nothing():
    features = FeatureDictionary(num_features=D_SAE, hidden_dim=D_IN)
    with pytest.raises(ValueError, match="computed from its parameters"):
        init_sae_to_match_feature_dict(small_sae(), features)


def test_separate_matrices_are_parameters_and_take_writes():
    sae = small_sae(structure="mlp")
    sae.W_dec.data[0] = 7.0
    assert sae.dictionary.W_dec[0].eq(7).all()
    init_sae_to_match_feature_dict(sae, features := FeatureDictionary(num_features=D_SAE, hidden_dim=D_IN))
    torch.testing.assert_close(sae.W_dec.data, features.feature_vectors.detach())


def test_a_computed_matrix_reads_copies_and_differentiates_like_a_tensor():
    sae = small_sae(dtype="float64")
    W_dec, own = sae.W_dec, sae.dictionary
    plain = (own.concepts @ own.W_v).detach()
    assert (
        torch.equal(W_dec, plain) and type(W_dec + 1) is type(W_dec.clone()) is type(W_dec.norm(dim=-1)) is torch.Tensor
    )
    assert (~W_dec.bool()).sum() == 0 and W_dec[0].tolist() == plain[0].tolist()
    assert (W_dec.detach().numpy() == plain.numpy()).all()
    (ours,) = torch.autograd.grad(W_dec.pow(2).sum(), own.W_v)
    torch.testing.assert_close(ours, 2 * own.concepts.T @ plain)
    owned = W_dec.detach().clone()
    owned += 1
    torch.testing.assert_close(owned, plain + 1)


def saved_by_torch(tensor: torch.Tensor) -> torch.Tensor:
    torch.save(tensor, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=True)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda tensor: pickle.loads(pickle.dumps(tensor)),
    "torch": saved_by_torch,
    "torch, in a dictionary": lambda tensor: saved_by_torch({"W": tensor})["W"],
    "safetensors": lambda tensor: safetensors.torch.load(safetensors.torch.save({"W": tensor}))["W"],
    "numpy": lambda tensor: torch.from_numpy(tensor.numpy().copy()),
}


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("of", [lambda W: W.detach(), lambda W: W.detach()[:2].contiguous()], ids=["whole", "view"])
def test_copies_and_files_of_a_computed_matrix_are_plain_tensors(name, copied, of):
    matrix = of(getattr(small_sae(), name))
    found = copied(matrix.contiguous())
    assert type(found) is torch.Tensor and torch.equal(found, matrix)
    found += 1  # is its own
    assert not torch.equal(found, matrix)


@pytest.mark.parametrize("copied", [copy.deepcopy, COPIES["pickle"], saved_by_torch])
@pytest.mark.parametrize("learns", [True, False])
def test_copies_of_a_parameter_made_of_a_computed_matrix_are_parameters(copied, learns):
    parameter = nn.Parameter(small_sae().W_dec, requires_grad=learns)
    found = copied(parameter)
    assert type(found) is nn.Parameter and torch.equal(found, parameter) and found.requires_grad == learns


def test_a_parameter_made_of_a_computed_matrix_learns():
    parameter = nn.Parameter(small_sae().W_dec)
    before = parameter.detach().clone()
    parameter.sum().backward()
    torch.optim.SGD([parameter], lr=1.0).step()
    torch.testing.assert_close(parameter.detach(), before - 1)


def maps_before_and_after_a_step(**settings):
    """What queries and contexts are multiplied with in a new SAE, and after a first step of Adam at 1e-3."""
    torch.manual_seed(0)
    sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, target_l0=None, **settings))
    optimizer, maps = torch.optim.Adam(sae.parameters(), lr=1e-3), []
    for _ in range(2):
        own = sae.dictionary
        maps.append([own.query_map(torch.float32).detach().clone(), own.value_map(torch.float32).detach().clone()])
        sae.training_forward_pass(step_input(inputs(256))).loss.backward()
        optimizer.step()
    return maps


@pytest.mark.parametrize("query_projection", [False, True])
def test_projections_start_as_ever_and_learn_at_their_share_of_the_rate(query_projection):
    settings = {"query_projection": query_projection, "init_score_scale": 2.0}
    start, after = maps_before_and_after_a_step(map_lr_scale=1.0, **settings)
    slow_start, slow_after = maps_before_and_after_a_step(map_lr_scale=0.1, **settings)
    torch.testing.assert_close(slow_start, start)
    for fast, slow in zip(zip(start, after, strict=True), zip(slow_start, slow_after, strict=True), strict=False):
        moved, moved_slowly = ((new - old).abs().median().item() for old, new in (fast, slow))
        assert moved_slowly == pytest.approx(0.1 * moved, rel=0.05) and moved_slowly > 0
