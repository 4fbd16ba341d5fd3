"""The inference SAE: one definition, whether hooked, differentiated, rounded or run in the least memory."""

import copy
import itertools

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file

from sae_lens_sparsemax import SparsemaxSAE, SparsemaxSAEConfig, sparsemax
from sae_lens_sparsemax.attention import selection
from sae_lens_sparsemax.sae import encoding
from tests.support.small_sae import D_IN, D_SAE, inputs, small_sae


def new_sae(**settings) -> SparsemaxSAE:
    torch.manual_seed(0)
    sae = SparsemaxSAE(SparsemaxSAEConfig(**{"d_in": D_IN, "d_sae": D_SAE, "gate_scale": 0.8} | settings))
    for parameter in sae.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return sae


def by_definition(sae: SparsemaxSAE, x: torch.Tensor) -> torch.Tensor:
    """Activations from the formulas alone."""
    centred = x - sae.b_dec * sae.cfg.apply_b_dec_to_input
    norm = centred.norm(dim=-1, keepdim=True)
    query, factor = (centred / norm, norm) if sae.cfg.unit_norm_query else (centred, torch.ones_like(norm))
    scores = query @ sae.W_enc + sae.b_enc
    p = sparsemax(sae.cfg.gate_scale * scores)
    return factor * (p if sae.cfg.activations == "probabilities" else torch.where(p > 0, scores, 0))


VARIANTS = [
    {},
    {"activations": "probabilities"},
    {"unit_norm_query": False},
    {"unit_norm_query": False, "activations": "probabilities", "apply_b_dec_to_input": False},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_activations_are_those_of_the_definition_on_every_path(settings):
    sae, x = new_sae(dtype="float64", **settings), inputs(dtype=torch.float64)
    expected = by_definition(sae, x)
    assert 1 < expected.count_nonzero(-1).double().mean() < D_SAE / 2
    torch.testing.assert_close(sae.encode(x), expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), expected, rtol=1e-10, atol=1e-10)
        with sae.hooks(fwd_hooks=[("hook_sae_acts_pre", lambda tensor, hook: None)]):
            torch.testing.assert_close(sae.encode(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize("shape", [(40,), (5, 8), (2, 4, 5)], ids=str)
def test_forward_is_decode_after_encode_and_decode_is_linear(settings, shape, monkeypatch):
    sae, x = new_sae(dtype="float64", **settings), inputs(dtype=torch.float64).reshape(*shape, D_IN)
    expected = (by_definition(sae, x) @ sae.W_dec + sae.b_dec).detach()
    with torch.no_grad():
        for density in (0.0, 1.0):  # plain products, and lists
            monkeypatch.setattr(encoding, "MAX_LIST_DENSITY", density)
            monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, "cpu", density)
            torch.testing.assert_close(sae(x), expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(sae.decode(sae.encode(x)), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sae(x), expected, rtol=1e-9, atol=1e-9)


def test_decode_takes_sparse_activations_and_negative_ones():
    sae = new_sae()
    acts = torch.zeros(3, D_SAE)
    acts[0, 5], acts[2, 7], acts[2, 0] = -2.0, 3.0, 1.0
    expected = acts @ sae.W_dec + sae.b_dec
    with torch.no_grad():
        torch.testing.assert_close(sae.decode(acts), expected)
        torch.testing.assert_close(sae.decode(acts.to_sparse()), expected)
        torch.testing.assert_close(sae.decode(acts.to_sparse_csr()), expected)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 1, 3), (0, 3)], ids=str)
def test_decode_takes_sparse_activations_of_any_shape_and_gives_them_gradients(shape):
    sae, acts = new_sae(), torch.randn(*shape, D_SAE).relu()
    dense, values = acts.clone().requires_grad_(), acts.to_sparse().coalesce().values().requires_grad_()
    index = acts.to_sparse().coalesce().indices()
    outs = sae.decode(dense), sae.decode(torch.sparse_coo_tensor(index, values, acts.shape))
    torch.testing.assert_close(*outs)
    (at_dense,), (at_values,) = (
        torch.autograd.grad(out.square().sum(), leaf) for out, leaf in zip(outs, (dense, values), strict=True)
    )
    torch.testing.assert_close(at_values, at_dense[tuple(index)])


def test_gradients_flow_through_active_concepts_alone():
    sae, x = new_sae(), inputs().requires_grad_()
    acts = sae.encode(x)
    active = (acts[0] != 0).nonzero().flatten()
    silent = (acts[0] == 0).nonzero().flatten()
    assert torch.autograd.grad(acts[0, silent].sum(), x, retain_graph=True)[0].count_nonzero() == 0
    assert torch.autograd.grad(acts[0, active[0]], x)[0][0].count_nonzero() == D_IN


@pytest.mark.parametrize("settings", [{}, {"passes": 2, "refinements": 1, "alpha": 3.0}], ids=str)
def test_gradients_are_the_same_on_every_path_whatever_is_frozen(settings):
    sae, x = new_sae(dtype="float64", **settings), inputs(6, dtype=torch.float64)
    tensors = dict(sae.named_parameters())
    weights = torch.randn_like(x)

    def gradients(run, learnt):
        for name, tensor in tensors.items():
            tensor.requires_grad_(name in learnt)
        return torch.autograd.grad((run(x) * weights).sum(), [tensors[name] for name in learnt], allow_unused=True)

    def with_a_hook(x):
        with sae.hooks(fwd_hooks=[("hook_sae_acts_post", lambda acts, hook: acts)]):
            return sae(x)

    whole = dict(zip(tensors, gradients(sae, list(tensors)), strict=True))
    assert all(each.any() for each in whole.values())
    for n in range(1, len(tensors)):
        for learnt in itertools.combinations(tensors, n):
            for run in (sae, lambda x: sae.decode(sae.encode(x)), with_a_hook):
                found = dict(zip(learnt, gradients(run, learnt), strict=True))
                torch.testing.assert_close(found, {name: whole[name] for name in learnt})


@pytest.mark.parametrize("point", ["hook_sae_acts_pre", "hook_sae_acts_post"])
def test_hooks_before_a_point_change_what_hooks_after_it_change(point):
    sae, x = new_sae(), inputs()
    sae.requires_grad_(False)
    handle = getattr(sae, point).register_forward_hook(lambda module, given, acts: 2 * acts)
    expected = sae(x), sae.encode(x)
    handle.remove()
    handle = getattr(sae, point).register_forward_pre_hook(lambda module, given: (2 * given[0],))
    assert not torch.equal(sae(x), new_sae()(x))
    torch.testing.assert_close((sae(x), sae.encode(x)), expected)


def test_every_hook_fires_in_order_with_dense_tensors():
    sae, x = new_sae(), inputs()
    with torch.no_grad():
        _, cache = sae.run_with_cache(x)
    assert list(cache) == [f"hook_sae_{name}" for name in ("input", "acts_pre", "acts_post", "recons", "output")]
    assert cache["hook_sae_acts_pre"].shape == cache["hook_sae_acts_post"].shape == (40, D_SAE)
    torch.testing.assert_close(cache["hook_sae_acts_post"], by_definition(sae, x).detach())


def test_autocast_changes_no_support():
    sae = new_sae(d_sae=2000)
    x = inputs(500)
    with torch.no_grad():
        exact = sae.encode(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = sae.encode(x)
            close = sae(x)
    assert torch.equal(exact, cast)
    assert close.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sae.encode(x) != 0, exact != 0)


def test_half_precision_weights_and_inputs_select_as_float32_on_the_same_numbers():
    half = new_sae(d_sae=2000).to(torch.bfloat16)
    half.b_dec.data.zero_()
    x = inputs(200, dtype=torch.bfloat16)
    with torch.no_grad():
        acts = half.encode(x)
        assert acts.dtype == half(x).dtype == torch.bfloat16
        assert torch.equal(acts != 0, copy.deepcopy(half).to(torch.float32).encode(x.float()) != 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_moves_of_dtype_and_device_change_numbers_only_by_rounding(dtype):
    sae, x = new_sae(), inputs()
    with torch.no_grad():
        expected = sae(x)
        moved = sae.to(dtype)
        assert moved.cfg.dtype == str(dtype).removeprefix("torch.")
        error = (moved(x) - expected).abs()
    # Rounded weights move a few concepts in or out of a support, which is no small change for their tokens.
    assert error.median() < (0.05 if dtype.itemsize == 2 else 1e-5)
    assert sae.to("meta").W_enc.device.type == "meta"
    assert sae.cfg.gate_scale == 0.8


@pytest.mark.parametrize("form", ["inference", "training"])
@pytest.mark.parametrize(
    "settings", [{}, {"alpha": 3.0, "passes": 2, "refinements": 1, "activation_floor": 0.5}], ids=str
)
@pytest.mark.parametrize("move", ["double", "half", "bfloat16"])
def test_modules_own_moves_of_dtype_are_as_good_as_to(form, settings, move):
    sae = new_sae(**settings) if form == "inference" else small_sae(**settings)
    dtype = {"double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}[move]
    # `to` rounds the input too.
    x, moved = inputs().to(dtype).float(), copy.deepcopy(sae).to(dtype)
    getattr(sae, move)()
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            acts, out = sae.encode(x), sae(x)
            assert acts.dtype == out.dtype == dtype
            torch.testing.assert_close(out, sae.decode(acts), rtol=0.1, atol=0.1)
            if move == "double":
                torch.testing.assert_close(acts, moved.encode(x))


def test_g_is_kept_in_float64_whatever_the_weights_are(tmp_path):
    sae = new_sae(gate_scale=1 / 3).to(torch.bfloat16)
    sae.save_model(tmp_path)
    assert SAE.load_from_disk(tmp_path, dtype="float16").cfg.gate_scale == 1 / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_gathered_lies_in_rows_however_an_sae_came_about_and_files_are_as_ever(dtype, tmp_path):
    def lies_in_rows(sae: SAE) -> bool:
        return sae.W_enc.shape == (D_IN, D_SAE) and sae.W_enc.T.is_contiguous()

    sae = new_sae()
    assert lies_in_rows(sae)
    sae.save_model(tmp_path / "own")
    small_sae().save_inference_model(tmp_path / "trained")
    for folder in ("own", "trained"):
        assert load_file(tmp_path / folder / "sae_weights.safetensors")["W_enc"].is_contiguous()
        assert lies_in_rows(loaded := SAE.load_from_disk(tmp_path / folder, dtype=str(dtype).removeprefix("torch.")))
        assert lies_in_rows(loaded.double())
    torch.testing.assert_close(SAE.load_from_disk(tmp_path / "own").W_enc, sae.W_enc, rtol=0, atol=0)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_an_input_equal_to_the_offset_has_no_active_concept(settings):
    sae = new_sae(**settings)
    x = (sae.b_dec * sae.cfg.apply_b_dec_to_input).detach().expand(2, -1)
    with torch.no_grad():
        assert sae.encode(x).count_nonzero() == 0
        torch.testing.assert_close(sae(x), sae.b_dec.expand(2, -1))


def test_no_tokens_give_no_activations():
    with torch.no_grad():
        assert new_sae().encode(torch.zeros(0, D_IN)).shape == (0, D_SAE)
        assert new_sae()(torch.zeros(3, 0, D_IN)).shape == (3, 0, D_IN)


def test_bad_inputs_are_refused():
    sae = new_sae(metadata=SAEMetadata(hook_name="blocks.1.hook_resid_post"))
    x = inputs()
    x[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"activations at blocks.1.hook_resid_post are not finite: 1 of 40 tokens"):
        sae(x)
    for width in (1, D_IN + 1):
        with pytest.raises(
            ValueError, match=rf"expected activations \(..., d_in\) with d_in = {D_IN}, got \(40, {width}\)"
        ):
            sae(inputs(d=width))


def test_heads_are_joined_on_the_way_in_and_parted_on_the_way_out():
    sae = new_sae(reshape_activations="hook_z")
    x = inputs(6)
    heads = x.reshape(2, 3, 4, D_IN // 4)
    plain = new_sae()
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(heads).reshape(6, -1), plain.encode(x))
        torch.testing.assert_close(sae(heads).reshape(6, -1), plain(x))
    assert sae(heads).shape == heads.shape
    with pytest.raises(ValueError, match=rf"n_heads \* d_head = {D_IN}"):
        sae(inputs(6, 13).reshape(2, 3, 13, 1))


def test_layer_norm_is_undone_in_the_reconstruction():
    sae = new_sae(normalize_activations="layer_norm")
    plain, x = new_sae(), 3 * inputs() + 4
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(sae(x), plain((x - mean) / (std + 1e-5)) * std + mean)


def test_a_trained_relu_gate_works_for_inference(tmp_path):
    trained = small_sae(gate="relu", l1_coefficient=0.1)
    trained.save_inference_model(tmp_path)
    loaded, x = SAE.load_from_disk(tmp_path), inputs()
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(x), trained.encode(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loaded(x), trained(x), rtol=1e-4, atol=1e-4)


ONE_PASS = {"passes": 1, "refinements": 0, "activation_floor": 0.0}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        ONE_PASS,
        {"passes": 3, "unit_norm_query": False},
        {"activation_floor": 0.0, "structure": "mlp"},
        {"alpha": 2.0, "activations": "probabilities"} | ONE_PASS,
        {"alpha": 2.0, "gate": "relu", "l1_coefficient": 0.1} | ONE_PASS,
    ],
    ids=str,
)
def test_folded_decoder_norms_change_the_units_of_activations_and_nothing_else(settings, tmp_path):
    x = inputs(dtype=torch.float64)
    trained = small_sae(
        dtype="float64", **{"alpha": 3.0, "passes": 2, "refinements": 1, "activation_floor": 0.3} | settings
    )
    trained.save_inference_model(tmp_path / "plain")
    plain, folded = (SAE.load_from_disk(tmp_path / "plain", fold_W_dec_norm=fold) for fold in (False, True))
    norms = plain.W_dec.norm(dim=1)
    assert norms.max() > 1.1 * norms.min()
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones_like(norms))
    folded.save_model(tmp_path / "folded")
    again = SAE.load_from_disk(tmp_path / "folded", fold_W_dec_norm=True)
    for sae in (folded, again):
        assert isinstance(sae, SparsemaxSAE) and isinstance(plain, SparsemaxSAE)
        assert torch.equal(sae.W_enc, plain.W_enc)
        with torch.no_grad():
            torch.testing.assert_close(sae.encode(x), plain.encode(x) * norms)
            torch.testing.assert_close(sae(x), plain(x))
            if sae.cfg.gate == "sparsemax":
                assert torch.equal(sae.first_passes(x).to_dense(), plain.first_passes(x).to_dense())
        sae.hook_sae_acts_pre.add_hook(lambda tensor, *, hook: tensor)
        torch.testing.assert_close(sae(x), plain(x))
        sae.reset_hooks()
        y = x.clone().requires_grad_()
        grads = [torch.autograd.grad(each(y).square().sum(), y)[0] for each in (sae, plain)]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("structure", ["cross_attention", "mlp"])
def test_decoder_norms_of_an_sae_in_training_are_not_folded(structure):
    sae = small_sae(structure=structure)
    before = copy.deepcopy(sae.state_dict())
    for fold in (sae.fold_W_dec_norm, sae.fold_and_get_W_dec_norm):
        with pytest.raises(NotImplementedError, match="fold_W_dec_norm=True"):
            fold()
    torch.testing.assert_close(sae.state_dict(), before, rtol=0, atol=0)
