"""The inference SAE under torch.func, forward-mode AD, export, compilation, and on tensors without values."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from sae_lens_sparsemax import SparsemaxSAE
from sae_lens_sparsemax.sae.config import SparsemaxSAEConfig
from tests.support.members import slow_but
from tests.support.small_sae import D_IN, D_SAE, inputs, small_sae

MEMBERS = {
    "scores": {},
    "probabilities": {"activations": "probabilities"},
    "raw queries": {"unit_norm_query": False, "gate_scale": 0.4},
    "raw probabilities": {"activations": "probabilities", "unit_norm_query": False, "structure": "mlp"},
    "mlp": {"structure": "mlp"},
    "relu": {"gate": "relu"},
    "passes": {"alpha": 3.0, "passes": 2, "refinements": 1, "activation_floor": 0.5},
}
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}
OTHERS = [(name, dtype) for name in ("passes", "raw probabilities") for dtype in (torch.bfloat16, torch.float64)]
"""What is compiled in other types than float32; without a compiler, every member is tried in every type."""


@pytest.fixture(params=MEMBERS)
def member(request) -> dict:
    return MEMBERS[request.param]


def inference_sae(tmp_path, dtype: torch.dtype = torch.float32, **settings) -> SparsemaxSAE:
    small_sae(**settings).save_inference_model(tmp_path)
    sae = SparsemaxSAE.load_from_disk(tmp_path, dtype=str(dtype).removeprefix("torch."))
    assert type(sae) is SparsemaxSAE
    return sae


def with_ordinary_calls(tmp_path, dtype: torch.dtype, settings: dict):
    """An SAE, inputs, what it makes of them, and how near that is to be met."""
    sae, x = inference_sae(tmp_path, dtype, **settings), inputs(dtype=dtype)
    x[3] = sae.b_dec.data  # no direction, no concept
    with torch.no_grad():
        acts, out = sae.encode(x), sae(x)
    return sae, x, acts, out, {"rtol": TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_are_those_of_ordinary_calls(member, dtype, tmp_path):
    sae, x, acts, out, close = with_ordinary_calls(tmp_path, dtype, member)
    traced = vmap(sae.encode)(x)
    assert torch.equal(traced != 0, acts != 0)
    torch.testing.assert_close(traced, acts, **close)
    torch.testing.assert_close(vmap(sae)(x), out, **close)
    torch.testing.assert_close(jvp(sae, (x,), (x,))[0], out, **close)


def members(often: str):
    """All members, of which one is tried by default, as compiling and exporting take seconds each time."""
    every = [*((name, torch.float32) for name in MEMBERS), *OTHERS]
    return pytest.mark.parametrize(("name", "dtype"), slow_but([(often, torch.float32)], every))


@members(often="passes")
def test_programs_give_the_values_of_ordinary_calls(name, dtype, tmp_path):
    sae, x, _, out, close = with_ordinary_calls(tmp_path, dtype, MEMBERS[name])
    with torch.no_grad():
        torch.testing.assert_close(make_fx(sae)(x)(x), out, **close)
        torch.testing.assert_close(torch.export.export(sae, (x,)).module()(x), out, **close)


@members(often="scores")
def test_a_compiled_sae_gives_the_values_of_ordinary_calls(name, dtype, tmp_path):
    sae, x, _, out, close = with_ordinary_calls(tmp_path, dtype, MEMBERS[name])
    check_compiled(sae, x, out, close)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float32) for name in MEMBERS), *OTHERS])
def test_a_compiled_encode_gives_the_activations_of_ordinary_calls(name, dtype, tmp_path):
    sae, x, acts, _, close = with_ordinary_calls(tmp_path, dtype, MEMBERS[name])
    check_compiled(sae.encode, x, acts, close)


def check_compiled(function, x, expected, close) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, **close)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected, **close)


def test_derivatives_are_those_of_autograd_and_of_finite_differences(member, tmp_path):
    sae, x = inference_sae(tmp_path, torch.float64, **member), inputs(6, dtype=torch.float64)
    torch.manual_seed(0)
    direction, weights = torch.randn_like(x), torch.randn_like(x)
    own = dict(sae.named_parameters())
    sought = [x.requires_grad_(), *own.values()]
    expected = torch.autograd.grad((sae(x) * weights).sum(), sought)
    x = x.detach()
    torch.testing.assert_close(grad(lambda x: (sae(x) * weights).sum())(x), expected[0])
    by_parameter = grad(lambda p: (functional_call(sae, p, (x,)) * weights).sum())(own)
    torch.testing.assert_close(list(by_parameter.values()), list(expected[1:]))
    per_token = vmap(grad(lambda x, w: (sae(x) * w).sum()))(x, weights)
    torch.testing.assert_close(per_token, expected[0])
    torch.testing.assert_close(jacfwd(sae)(x), jacrev(sae)(x))
    assert hessian(lambda x: sae(x).pow(2).sum())(x[0]).isfinite().all()

    step = 1e-6
    with torch.no_grad():
        differences = (sae(x + step * direction) - sae(x - step * direction)) / (2 * step)
    torch.testing.assert_close(jvp(sae, (x,), (direction,))[1], differences, rtol=1e-6, atol=1e-6)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(sae(forward_ad.make_dual(x, direction))).tangent
            torch.testing.assert_close(tangent, differences, rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(sae, x[:2].requires_grad_(), check_forward_ad=True)


def test_a_tangent_on_a_weight_alone_is_carried(member, tmp_path):
    sae, x = inference_sae(tmp_path, torch.float64, **member), inputs(6, dtype=torch.float64)
    own = {name: value.detach() for name, value in sae.named_parameters()}
    torch.manual_seed(0)
    for name in own:
        direction = torch.randn_like(own[name])
        given = jvp(lambda v, name=name: functional_call(sae, own | {name: v}, (x,)), (own[name],), (direction,))[1]
        with torch.no_grad(), forward_ad.dual_level():
            duals = own | {name: forward_ad.make_dual(own[name], direction)}
            tangent = forward_ad.unpack_dual(functional_call(sae, duals, (x,))).tangent
        torch.testing.assert_close(tangent, given)
        assert given.any()


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported_programs_take_any_number_of_tokens(strict, tmp_path):
    sae, x = inference_sae(tmp_path), inputs()
    tokens = torch.export.Dim("tokens", min=2)
    program = torch.export.export(sae, (x,), dynamic_shapes=({0: tokens},), strict=strict).module()
    with torch.no_grad():
        torch.testing.assert_close(program(x[:7]), sae(x[:7]))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"reshape_activations": "hook_z", "normalize_activations": "layer_norm"}, marks=pytest.mark.slow),
    ],
)
def test_shapes_alone_and_the_hosts_settings(settings):
    sae = SparsemaxSAE(SparsemaxSAEConfig(d_in=D_IN, d_sae=D_SAE, **settings))
    shape = (2, 5, 3, D_IN // 3) if "reshape_activations" in settings else (2, 5, D_IN)
    x = torch.randn(shape)
    for module in (torch.enable_grad(), torch.no_grad()):
        with module, FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert sae(mode.from_tensor(x)).shape == shape and sae.encode(mode.from_tensor(x)).shape[-1] == D_SAE
    if settings:
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(sae, fullgraph=True, backend="aot_eager")(x), sae(x))
    sae.to("meta")
    for module in (torch.enable_grad(), torch.no_grad()):
        with module:
            assert sae(x.to("meta")).shape == shape and sae(x.to("meta")).is_meta


def test_one_program_serves_saes_of_other_settings(tmp_path):
    """What differs between calls of the same code is a symbol to the compiler from the second call on."""
    torch._dynamo.reset()
    x = inputs()
    for number, (alpha, gate_scale) in enumerate([(3.0, 2.0), (2.0, 2.5), (4.0, 3.0), (torch.inf, 0.25)]):
        sae = inference_sae(tmp_path / str(number), alpha=alpha, gate_scale=gate_scale, activations="scores", passes=1)
        torch.testing.assert_close(torch.compile(sae, fullgraph=True, backend="eager")(x), sae(x))


@pytest.mark.slow
def test_inductor_compiles_and_differentiates(tmp_path):
    sae, x = inference_sae(tmp_path), inputs().requires_grad_()
    torch._dynamo.reset()
    out = torch.compile(sae, fullgraph=True)(x)
    torch.testing.assert_close(out, sae(x))
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x), torch.autograd.grad(sae(x).sum(), x))


def test_training_saes_are_traced_too(member):
    sae, x = small_sae(**member), inputs()
    with torch.no_grad():
        expected = sae(x)
        torch.testing.assert_close(vmap(sae)(x), expected)
        assert sae.to("meta").encode(x.to("meta")).shape == (len(x), D_SAE)
