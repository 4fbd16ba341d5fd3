"""Several passes and refinements against their definition, written out token by token in float64."""

import itertools
import json

import pytest
import torch
from sae_lens import SAE
from torch import nn
from torch.func import functional_call

from sae_lens_sparsemax import SparsemaxSAE, SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.attention import selection
from sae_lens_sparsemax.sae.thresholds import follow_mean
from tests.support.small_sae import D_SAE, DICTIONARIES, dense, inputs, small_sae, step_input

INFINITE = float("inf")


def selected(z: list[float], alpha: float, budget: float) -> set[int]:
    """A score is in if what lies above it costs less than the budget."""
    exponent = 1 / (alpha - 1)
    return {i for i, mine in enumerate(z) if sum((other - mine) ** exponent for other in z if other > mine) < budget}


def definition(sae: SparsemaxTrainingSAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, M) activations of scores: every look in its turn, every token by itself; and the pass that first selects."""
    W_enc, W_dec, cfg = sae.W_enc.detach(), sae.W_dec.detach(), sae.cfg
    acts = torch.zeros(len(x), cfg.d_sae, dtype=torch.float64)
    first = torch.zeros(len(x), cfg.d_sae, dtype=torch.int64)
    for n, row in enumerate(x):
        centred = row - sae.b_dec.detach() if cfg.apply_b_dec_to_input else row
        found: set[int] = set()
        for look in range(cfg.passes + cfg.refinements):
            residual = centred - acts[n] @ W_dec
            norm = residual.norm() if cfg.unit_norm_query else torch.tensor(1.0, dtype=torch.float64)
            query = residual / norm
            if look:
                assert sae.W_pass is not None
                query = query @ sae.W_pass[look - 1].detach()
            z = query @ W_enc + sae.b_enc.detach()
            now = selected(z.tolist(), cfg.alpha, 1 / cfg.gate_scale) if look < cfg.passes else found
            first[n, list(now - found)] = look + 1
            found |= now
            for i in now:
                acts[n, i] += norm * z[i]
    if sae.mean_acts is not None:
        acts[acts <= cfg.activation_floor * sae.mean_acts] = 0
    return acts, first


@pytest.mark.parametrize("dictionary", DICTIONARIES.values(), ids=DICTIONARIES)
@pytest.mark.parametrize("unit_norm_query", [True, False])
@pytest.mark.parametrize(("alpha", "gate_scale"), [(2.0, 1.5), (3.0, 0.8), (INFINITE, 0.25)])
@pytest.mark.parametrize(("passes", "refinements"), [(1, 1), (2, 0), (3, 2)])
@pytest.mark.parametrize("activation_floor", [0.0, 0.9])
def test_every_way_to_encode_is_the_definition(
    dictionary, unit_norm_query, alpha, gate_scale, passes, refinements, activation_floor, monkeypatch
):
    sae = small_sae(
        dtype="float64",
        unit_norm_query=unit_norm_query,
        alpha=alpha,
        gate_scale=gate_scale,
        passes=passes,
        refinements=refinements,
        activation_floor=activation_floor,
        **dictionary,
    ).eval()
    x = inputs(10, dtype=torch.float64)
    expected = definition(sae, x)[0]
    assert 0 < int((expected != 0).sum()) < expected.numel()
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(sae.encode_with_hidden_pre(x)[0], expected, rtol=1e-9, atol=1e-11)
    for density in (0.0, 1.0):
        monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", density)
        output = sae.training_forward_pass(step_input(x))
        torch.testing.assert_close(dense(output.feature_acts).detach(), expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(output.sae_out, sae.decode(expected), rtol=1e-9, atol=1e-11)


class TrainingStep(nn.Module):
    """A training step as a function, in float64 to its end, which the loss is not."""

    def __init__(self, sae):
        super().__init__()
        self.sae = sae

    def forward(self, x):
        output = self.sae.training_forward_pass(step_input(x))
        return (output.sae_out - x).square().sum() + dense(output.feature_acts).square().sum()


@pytest.mark.parametrize("dictionary", DICTIONARIES.values(), ids=DICTIONARIES)
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_gradients_are_those_of_finite_differences(dictionary, density, monkeypatch):
    monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", density)
    sae = small_sae(
        dtype="float64", **dictionary, passes=2, refinements=1, alpha=3.0, d_sae=24, activation_floor=0.3
    ).eval()
    x = inputs(6, dtype=torch.float64)
    step = TrainingStep(sae)
    names = [name for name, _ in step.named_parameters()]
    assert "sae.turns" in names
    values = [parameter.detach().clone().requires_grad_() for parameter in step.parameters()]

    def loss(*values):
        return functional_call(step, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(loss, values, fast_mode=True)


def test_a_concept_found_twice_counts_once(monkeypatch):
    monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", 1.0)
    sae = small_sae(passes=3, alpha=INFINITE, gate_scale=1 / 6, target_l0=20.0, target_l0_rate=0.5)
    output = sae.training_forward_pass(step_input(inputs()))
    counts = dense(output.feature_acts).count_nonzero(-1).float()
    assert output.metrics["l0_pass_1"]() == output.metrics["l0_pass_3"]() == 6
    assert 6 < counts.mean() < 18
    assert sae.gate_scale == pytest.approx(1 / 6 * (counts.mean().item() / 20) ** 0.5)


@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
@pytest.mark.parametrize("floor_of", ["concept", "dictionary"])
def test_thresholds_follow_the_means_of_activations_before_anything_is_dropped(floor_of, structure, monkeypatch):
    monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", 1.0)
    settings = {"dtype": "float64", "structure": structure, "passes": 2}
    kept = small_sae(**settings)
    sae, hooked = (small_sae(**settings, activation_floor=0.6, floor_of=floor_of) for _ in range(2))
    for each in (sae, hooked):
        each.mean_acts.zero_()
    norms = sae.dictionary.values.detach().norm(dim=-1)
    mean = torch.zeros(D_SAE, dtype=torch.float64)
    for seed in range(3):
        x = inputs(dtype=torch.float64) * (1 + seed)
        acts = kept.encode(x).detach().clamp_min(0)
        expected = torch.where(acts > 0.6 * mean, acts, 0)
        torch.testing.assert_close(dense(sae.training_forward_pass(step_input(x)).feature_acts).detach(), expected)
        with hooked.hooks(fwd_hooks=[("hook_sae_acts_post", lambda tensor, hook: None)]):
            hooked.training_forward_pass(step_input(x))
        count = (acts > 0).sum(0)
        if floor_of == "concept":
            batch = acts.sum(0) / count.clamp_min(1)
        else:
            contributions = (acts * norms)[acts > 0]
            batch, count = contributions.mean() / norms, torch.full_like(count, len(contributions))
        mean = torch.where(count > 0, torch.where(mean > 0, 0.97 * mean + 0.03 * batch, batch), mean)
        torch.testing.assert_close(sae.mean_acts, mean)
        torch.testing.assert_close(hooked.mean_acts, mean)
    assert (dense(sae.encode(inputs(dtype=torch.float64))) == 0).sum() > (
        kept.encode(inputs(dtype=torch.float64)) == 0
    ).sum()
    sae.eval().training_forward_pass(step_input(x))
    torch.testing.assert_close(sae.mean_acts, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_concept_without_a_value_and_a_batch_without_a_concept_leave_thresholds_finite(dtype):
    mean, norms = torch.zeros(3, dtype=dtype), torch.tensor([1.0, 0.0, 4.0])
    acts = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, -3.0]])
    follow_mean(mean, torch.zeros_like(acts), lambda part, _: part, torch.diag(norms))
    assert mean.tolist() == [0, 0, 0]
    follow_mean(mean, acts, lambda part, _: part, torch.diag(norms))
    assert mean[[0, 2]].tolist() == [2, 0.5]  # contributions 2, 0 and 4
    assert mean.isfinite().all() and mean[1] > 1e30
    follow_mean(mean, acts, lambda part, _: part, torch.diag(norms))
    assert mean.isfinite().all()


def test_what_is_explained_has_nothing_left_to_find():
    # Orthogonal concepts: the first pass explains these inputs to rounding, whatever the second would make of that.
    sae = SparsemaxTrainingSAE(
        SparsemaxTrainingSAEConfig(d_in=8, d_sae=8, target_l0=None, passes=2, b_dec_init="zeros", gate_scale=5.0)
    )
    sae.dictionary.concepts.data = torch.linalg.qr(torch.randn(8, 8)).Q
    x = 3.0 * sae.dictionary.concepts.data
    x[5] = 0
    with torch.no_grad():
        expected = 3.0 * torch.eye(8)
        expected[5] = 0
        assert torch.equal(sae.encode(x) != 0, expected != 0)
        torch.testing.assert_close(sae.encode(x), expected)
    output = sae.training_forward_pass(step_input(x))
    assert output.feature_acts.indices().shape[1] == 7
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in sae.parameters())


@pytest.mark.parametrize(("passes", "refinements"), list(itertools.product((1, 2), (0, 1))))
def test_saved_passes_load_as_they_were(passes, refinements, tmp_path):
    floor = 0.5 if refinements else 0.0
    sae = small_sae(passes=passes, refinements=refinements, activation_floor=floor, dtype="float64")
    x = inputs(dtype=torch.float64)
    sae.save_model(tmp_path / "training")
    sae.save_inference_model(tmp_path / "inference")
    for folder in ("training", "inference"):
        loaded = SAE.load_from_disk(tmp_path / folder)
        assert type(loaded) is SparsemaxSAE
        assert (loaded.W_pass is None) == (passes + refinements == 1)
        assert (loaded.threshold is None) == (floor == 0)
        with torch.no_grad():
            torch.testing.assert_close(loaded.encode(x), sae.encode(x), rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(loaded(x), sae(x), rtol=1e-9, atol=1e-10)


def test_files_from_before_passes_load_as_one(tmp_path):
    small_sae().save_inference_model(tmp_path)
    path = tmp_path / "cfg.json"
    settings = json.loads(path.read_text())
    del settings["passes"], settings["refinements"], settings["activation_floor"]
    path.write_text(json.dumps(settings))
    (tmp_path / "checksums.json").unlink(missing_ok=True)
    loaded = SAE.load_from_disk(tmp_path)
    assert (loaded.cfg.passes, loaded.cfg.refinements, loaded.cfg.activation_floor) == (1, 0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"passes": 0}, "passes must be at least 1"),
        ({"refinements": -1}, "refinements at least 0"),
        ({"passes": 2, "gate": "relu", "target_l0": None}, "passes must be 1"),
        ({"floor_of": "token"}, "floor_of must be one of 'concept', 'dictionary', got 'token'"),
        ({"activation_floor": 1.0}, "activation_floor must be at least 0 and less than 1, got 1.0"),
        ({"activation_floor": 0.5, "gate": "relu", "target_l0": None}, "activation_floor must be 0"),
        ({"refinements": 1, "activations": "probabilities"}, "refinements must be 0"),
        (
            {
                "passes": 2,
                "structure": "mlp",
                "unit_norm_query": False,
                "apply_b_dec_to_input": False,
                "normalize_activations": "covariance_whitening",
            },
            "needs apply_b_dec_to_input=True with several passes",
        ),
    ],
    ids=str,
)
def test_what_passes_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SparsemaxTrainingSAEConfig(d_in=8, d_sae=D_SAE, **settings)


def test_half_precision_reads_residuals_in_full(tmp_path):
    # Without an offset to subtract, half precision differs by its weights and by rounding what comes out alone.
    sae, x = small_sae(passes=2, refinements=1, b_dec_init="fixed_zeros"), inputs()
    sae.b_dec.data.zero_()
    sae.to(torch.bfloat16).float().save_inference_model(tmp_path)
    half, full = (SAE.load_from_disk(tmp_path, dtype=dtype) for dtype in ("bfloat16", "float32"))
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    with torch.no_grad():
        acts = half.encode(x.bfloat16())
        assert acts.dtype == torch.bfloat16
        torch.testing.assert_close(acts, full.encode(x.bfloat16().float()).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
@pytest.mark.parametrize(("alpha", "gate_scale"), [(2.0, 1.5), (3.0, 0.8), (INFINITE, 0.25)])
@pytest.mark.parametrize(("passes", "refinements"), [(1, 0), (2, 1), (3, 0)])
@pytest.mark.parametrize("activation_floor", [0.0, 0.5])
def test_the_first_pass_of_a_concept_is_the_first_that_selected_it(
    structure, alpha, gate_scale, passes, refinements, activation_floor, tmp_path
):
    trained = small_sae(
        dtype="float64",
        structure=structure,
        alpha=alpha,
        gate_scale=gate_scale,
        passes=passes,
        refinements=refinements,
        activation_floor=activation_floor,
    )
    trained.save_inference_model(tmp_path)
    sae, x = SAE.load_from_disk(tmp_path, dtype="float64"), inputs(12, dtype=torch.float64)
    acts, first = definition(trained, x)
    assert set(first[acts != 0].tolist()) == set(range(1, passes + 1))
    found = sae.first_passes(x)
    assert torch.equal(found.to_dense(), torch.where(acts != 0, first, 0))
    assert found.is_coalesced() and torch.equal(found.indices(), sae.encode(x).nonzero().T)
    assert torch.equal(sae.first_passes(x.view(3, 4, -1)).to_dense(), found.to_dense().view(3, 4, -1))
    assert torch.equal(sae.first_passes(x[0]).to_dense(), found.to_dense()[0])


@pytest.mark.parametrize("form", ["training", "inference"])
@pytest.mark.parametrize("refinements", [0, 1])
def test_autocast_changes_no_support_of_later_passes_with_or_without_hooks(form, refinements, tmp_path):
    sae, x = small_sae(passes=3, refinements=refinements), inputs(200)
    if form == "inference":
        sae.save_inference_model(tmp_path)
        sae = SAE.load_from_disk(tmp_path)
    with torch.no_grad():
        expected = sae.encode(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = sae.encode(x)
            with sae.hooks(fwd_hooks=[("hook_sae_acts_pre", lambda tensor, hook: None)]):
                hooked = sae.encode(x)
    for acts in (plain, hooked):
        assert torch.equal(acts != 0, expected != 0)
        torch.testing.assert_close(acts, expected, rtol=1e-4, atol=1e-4)
