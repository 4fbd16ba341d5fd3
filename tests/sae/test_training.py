"""The training SAE: its sparse pass against the dense one, its gate, its inputs, its dtypes and devices."""

import copy

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata

from sae_lens_sparsemax import PRESETS, SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig
from sae_lens_sparsemax.attention import selection
from tests.support.members import slow_but
from tests.support.small_sae import D_IN, D_SAE, dense, inputs, small_sae, step_input

VARIANTS = [
    {},
    {"structure": "mlp"},
    {"query_projection": True, "unit_norm_query": False},
    {"activations": "probabilities"},
    {"loss_weighting": "inverse_norm", "apply_b_dec_to_input": False},
    {"alpha": 3.0},
    {"alpha": 3.0, "activations": "probabilities", "structure": "mlp"},
    {"alpha": float("inf")},
    {"alpha": 3.0, "passes": 2, "refinements": 1},
    {"activation_floor": 0.5},
    {"structure": "mlp", "passes": 2, "refinements": 1, "activation_floor": 0.7},
    {"structure": "mlp", "passes": 3, "refinements": 2, "apply_b_dec_to_input": False},
    {"unit_norm_query": False, "query_projection": True, "alpha": float("inf"), "passes": 2},
    {"activations": "probabilities", "passes": 2},
    {"encoder_bias": True, "passes": 2, "refinements": 1, "activation_floor": 0.5},
]


@pytest.fixture
def always_lists(monkeypatch):
    monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", 1.0)


def gradients(sae, output):
    """Of the loss, by parameter; then cleared."""
    output.loss.backward()
    found = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    sae.zero_grad()
    return found


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("hook", ["hook_sae_acts_pre", "hook_sae_acts_post"])
def test_hooks_see_dense_tensors_and_change_neither_loss_nor_gradient(settings, hook, always_lists):
    sae, x = small_sae(dtype="float64", **settings).eval(), inputs(dtype=torch.float64)
    sparse = sae.training_forward_pass(step_input(x))
    expected = gradients(sae, sparse)
    seen = []
    with sae.hooks(fwd_hooks=[(hook, lambda tensor, hook: seen.append(tensor))]):
        hooked = sae.training_forward_pass(step_input(x))
    assert sparse.feature_acts.layout == hooked.feature_acts.layout
    assert seen[0].shape == (40, D_SAE) and not seen[0].is_sparse
    torch.testing.assert_close(dense(sparse.feature_acts), dense(hooked.feature_acts), rtol=0, atol=1e-12)
    torch.testing.assert_close(sparse.loss, hooked.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(sae, hooked), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_training_pass_encodes_and_decodes_as_encode_and_decode_do(settings, always_lists):
    sae, x = small_sae(**settings).eval(), inputs()
    output = sae.training_forward_pass(step_input(x))
    with torch.no_grad():
        acts = sae.encode(x)
        torch.testing.assert_close(dense(output.feature_acts), acts)
        torch.testing.assert_close(output.sae_out, sae.decode(acts))
        torch.testing.assert_close(output.sae_out, acts @ sae.W_dec + sae.b_dec)


@pytest.mark.parametrize("settings", [*VARIANTS, {"gate": "relu"}], ids=str)
@pytest.mark.parametrize("gate_scale", [0.01, 1.5, 40.0])
@pytest.mark.parametrize("hook", [None, "hook_sae_acts_pre", "hook_sae_acts_post"])
def test_the_config_alone_decides_the_layout_of_feature_acts(settings, gate_scale, hook):
    sae = small_sae(**settings, gate_scale=gate_scale, dtype="float64").eval()
    x = inputs(dtype=torch.float64)
    with sae.hooks(fwd_hooks=[(hook, lambda tensor, hook: None)] if hook else []):
        acts = sae.training_forward_pass(step_input(x)).feature_acts
    assert acts.shape == (40, D_SAE) and acts.dtype == torch.float64 and acts.requires_grad
    has_lists = settings.get("gate") != "relu" and settings.get("activations") != "probabilities"
    assert acts.layout == (torch.sparse_coo if has_lists else torch.strided)
    assert not acts.is_sparse or acts.is_coalesced()
    torch.testing.assert_close(acts.to_dense(), sae.encode_with_hidden_pre(x)[0])


@pytest.mark.parametrize("point", ["hook_sae_acts_pre", "hook_sae_acts_post"])
@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_full_backward_pre_hook"])
def test_hooks_before_a_point_are_asked_too(point, register, always_lists):
    sae, seen = small_sae(), []
    getattr(getattr(sae, point), register)(lambda module, given: seen.append(given[0].shape))
    sae.training_forward_pass(step_input(inputs())).loss.backward()
    if register == "register_forward_pre_hook":
        with torch.no_grad():
            sae.encode(inputs())
    assert seen == [(40, D_SAE)] * (2 if register == "register_forward_pre_hook" else 1)


def test_without_hooks_encode_equals_the_differentiable_one():
    sae, x = small_sae(), inputs()
    with torch.no_grad():
        plain = sae.encode(x)
    assert torch.equal(plain, sae.encode_with_hidden_pre(x)[0])


def test_hooks_on_input_and_reconstruction_fire_in_the_sparse_pass(always_lists):
    sae, x = small_sae(), inputs()
    seen = {}
    names = ["hook_sae_input", "hook_sae_recons"]
    with sae.hooks(fwd_hooks=[(n, lambda tensor, hook: seen.update({hook.name: tensor})) for n in names]):
        output = sae.training_forward_pass(step_input(x))
    assert output.feature_acts.is_sparse
    assert torch.equal(seen["hook_sae_input"], x)
    assert torch.equal(seen["hook_sae_recons"], output.sae_out)


def test_the_plain_loss_is_the_summed_squared_error_and_the_weighted_one_divides_it():
    x = inputs()
    for weighting in ("none", "inverse_norm"):
        sae = small_sae(loss_weighting=weighting)
        output = sae.training_forward_pass(step_input(x))
        error = (output.sae_out - x).pow(2).sum(-1)
        expected = error.mean() if weighting == "none" else (error / x.norm(dim=-1)).mean()
        torch.testing.assert_close(output.loss, expected)


def test_relu_with_l1_is_the_baseline_of_the_paper():
    sae, x = small_sae(gate="relu", l1_coefficient=0.5), inputs()
    output = sae.training_forward_pass(step_input(x, l1=0.5))
    acts = output.feature_acts
    query = x - sae.b_dec
    scores = (query / query.norm(dim=-1, keepdim=True)) @ sae.W_enc
    torch.testing.assert_close(acts, scores.relu() * query.norm(dim=-1, keepdim=True), rtol=1e-4, atol=1e-5)
    penalty = 0.5 * (acts.abs() * sae.W_dec.norm(dim=-1)).sum(-1).mean()
    torch.testing.assert_close(output.losses["l1_loss"], penalty)
    torch.testing.assert_close(output.loss, output.losses["mse_loss"] + penalty)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_a_zero_input_has_no_active_concept_and_finite_gradients(settings, always_lists):
    sae, x = small_sae(**settings), inputs()
    sae.b_dec.data.zero_()
    x[3] = 0
    output = sae.training_forward_pass(step_input(x))
    assert dense(output.feature_acts)[3].count_nonzero() == 0
    assert torch.equal(output.sae_out[3], sae.b_dec)
    assert all(torch.isfinite(g).all() for g in gradients(sae, output).values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_with_hook_and_step(value):
    sae, x = small_sae(metadata=SAEMetadata(hook_name="blocks.3.hook_resid_post")), inputs()
    before = copy.deepcopy(sae.state_dict())
    x[2, 5], x[7, 0] = value, value
    message = "activations at blocks.3.hook_resid_post in training step 18 are not finite: 2 of 40 tokens"
    with pytest.raises(ValueError, match=message):
        sae.training_forward_pass(step_input(x, step=17))
    with pytest.raises(ValueError, match=r"at blocks.3.hook_resid_post are not finite"):
        sae.encode(x)
    torch.testing.assert_close(sae.state_dict(), before, rtol=0, atol=0)


def test_sums_that_overflow_are_no_infinite_activations():
    x = torch.full((1, D_IN), 6e4, dtype=torch.float16)
    assert torch.isfinite(small_sae().training_forward_pass(step_input(x.float())).loss)
    small_sae().encode(x)


@pytest.mark.parametrize("width", [1, 13])
def test_inputs_of_another_width_are_refused_with_both(width):
    for call in (lambda s, x: s.encode(x), lambda s, x: s.training_forward_pass(step_input(x))):
        with pytest.raises(ValueError, match=rf"d_in = {D_IN}, got \(40, {width}\)"):
            call(small_sae(), inputs(d=width))


def test_g_follows_the_target_in_training_and_rests_in_evaluation():
    sae, x = small_sae(target_l0=3.0, target_l0_rate=0.1, gate_scale=0.3), inputs()
    first = sae.training_forward_pass(step_input(x))
    assert dense(first.feature_acts).count_nonzero(-1).float().mean() > 3
    assert sae.cfg.gate_scale == sae.gate_scale > 0.3
    moved = sae.cfg.gate_scale
    sae.eval()
    sae.training_forward_pass(step_input(x))
    sae.encode(x)
    assert sae.cfg.gate_scale == moved
    sae.train()
    for step in range(100):
        output = sae.training_forward_pass(step_input(x, step))
    assert dense(output.feature_acts).count_nonzero(-1).float().mean() == pytest.approx(3, abs=0.3)


def test_without_a_target_g_rests():
    sae = small_sae(target_l0=None, gate_scale=0.3)
    sae.training_forward_pass(step_input(inputs()))
    assert sae.cfg.gate_scale == sae.gate_scale == 0.3


def test_saes_of_one_config_have_each_their_own_gate():
    config = SparsemaxTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, target_l0=2.0)
    one, other = SparsemaxTrainingSAE(config), SparsemaxTrainingSAE(config)
    one.training_forward_pass(step_input(inputs()))
    assert one.cfg.gate_scale != 1.0
    assert other.cfg.gate_scale == config.gate_scale == 1.0


@pytest.mark.parametrize("init", ["first_batch_mean", "zeros", "fixed_zeros"])
def test_b_dec_begins_as_configured_once(init):
    sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, b_dec_init=init))
    x = inputs()
    for batch in (x, x + 7):
        sae.training_forward_pass(step_input(batch))
    expected = x.mean(0) if init == "first_batch_mean" else torch.zeros(D_IN)
    torch.testing.assert_close(sae.b_dec.data, expected)
    assert sae.b_dec.requires_grad == (init != "fixed_zeros")


def test_b_dec_begins_at_the_mean_of_what_layer_norm_leaves():
    config = SparsemaxTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, normalize_activations="layer_norm")
    sae, x = SparsemaxTrainingSAE(config), inputs() + 5
    sae.training_forward_pass(step_input(x))
    normalised = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(sae.b_dec.data, normalised.mean(0))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train(preset):
    sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **PRESETS[preset]))
    optimiser, x = torch.optim.Adam(sae.parameters(), 1e-2), inputs()
    losses = []
    for step in range(30):
        output = sae.training_forward_pass(step_input(x, step))
        output.loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(output.loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_training_in_another_dtype_keeps_the_precision_of_g_and_the_flag(structure, dtype):
    sae = small_sae(structure=structure, query_projection=True, gate_scale=1 / 3).to(dtype)
    assert {p.dtype for p in sae.parameters()} == {dtype}
    assert sae.gate_scale == 1 / 3
    assert sae.b_dec_is_initialised.dtype == torch.bool
    output = sae.training_forward_pass(step_input(inputs(dtype=dtype)))
    output.loss.backward()
    assert output.sae_out.dtype == dtype
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == dtype for p in sae.parameters())
    with torch.no_grad():
        assert sae.encode(inputs(dtype=dtype)).dtype == dtype
        assert sae(inputs(dtype=dtype)).dtype == dtype


def test_in_half_precision_the_supports_are_those_of_the_rounded_weights_in_float32():
    half = small_sae(d_sae=600).to(torch.bfloat16)
    wide = copy.deepcopy(half).to(torch.float32)
    x = inputs(200, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(half.encode(x) != 0, wide.encode((x - half.b_dec).float() + wide.b_dec) != 0)


def test_moves_to_the_meta_device_and_back_keep_g():
    sae = small_sae(gate_scale=1 / 3)
    sae.to("meta")
    assert sae.W_dec.device.type == "meta" and sae.gate_scale == 1 / 3
    sae.to_empty(device="cpu")
    assert sae.gate_scale == 1 / 3
    assert small_sae(gate_scale=1 / 3).to("cpu").gate_scale == 1 / 3


def test_more_than_two_dimensions_are_encoded_token_by_token():
    sae, x = small_sae(), inputs()
    flat = sae.training_forward_pass(step_input(x))
    shaped = sae.training_forward_pass(step_input(x.reshape(5, 8, D_IN)))
    torch.testing.assert_close(dense(shaped.feature_acts).reshape(40, -1), dense(flat.feature_acts))
    torch.testing.assert_close(shaped.loss, flat.loss)


def test_tokens_without_active_concepts_count_as_none():
    sae, x = small_sae(target_l0=4.0), inputs()
    sae.b_dec.data.zero_()
    x[:20] = 0
    output = sae.training_forward_pass(step_input(x))
    l0 = dense(output.feature_acts).count_nonzero(-1)
    assert l0[:20].sum() == 0 and output.metrics["l0_p5"]() == 0
    assert output.metrics["l0_p95"]() == torch.quantile(l0.float(), 0.95)


@pytest.mark.parametrize("alpha", slow_but((2.0, float("inf")), (2.0, 2.5, 5.0, float("inf"))))
def test_the_target_holds_for_every_gate(alpha):
    torch.manual_seed(0)
    one_pass = {"passes": 1, "refinements": 0, "activation_floor": 0.0}
    sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=D_IN, d_sae=64, alpha=alpha, target_l0=6, **one_pass))
    x = torch.randn(256, D_IN)
    for _ in range(300):
        sae.training_forward_pass(step_input(x))
    counts = sae.encode(x).count_nonzero(-1).double()
    assert counts.mean().item() == pytest.approx(6, rel=0.03)
    assert (counts.std() == 0) == (alpha == float("inf"))


def test_the_target_holds_for_what_passes_and_thresholds_leave():
    torch.manual_seed(0)
    sae = SparsemaxTrainingSAE(SparsemaxTrainingSAEConfig(d_in=D_IN, d_sae=64, target_l0=6))
    x = torch.randn(256, D_IN)
    for _ in range(200):
        sae.training_forward_pass(step_input(x))
    assert sae.encode(x).count_nonzero(-1).double().mean().item() == pytest.approx(6, rel=0.05)


@pytest.mark.parametrize("settings", [{}, {"alpha": 2.5, "activations": "probabilities"}], ids=str)
def test_second_derivatives_are_those_of_the_dense_pass_and_refused_of_a_sparse_one(settings, always_lists):
    sae, x = small_sae(d_in=3, d_sae=7, dtype="float64", **settings), inputs(2, 3, torch.float64)
    assert torch.autograd.gradgradcheck(sae, x.requires_grad_())
    loss = sae.training_forward_pass(step_input(x.detach())).loss
    with pytest.raises(ValueError, match=r"must be of first order.* take others of sae\(x\)"):
        torch.autograd.grad(loss, list(sae.parameters()), create_graph=True)
