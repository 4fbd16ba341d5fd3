"""The attention through its kernels against autograd through the plain formulation, and who gets the kernels."""

from types import SimpleNamespace

import pytest
import torch

from sae_lens_sparsemax.attention import cross_attention, kernels, rows, selection
from sae_lens_sparsemax.attention.cross_attention import attend
from tests.attention.test_cross_attention import dense, example, plain

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def always_kernels(monkeypatch):
    """Kernels for tensors of any device, and torch's ways barred."""
    pytest.importorskip("triton", reason="the kernels need Triton, which has no wheel for this platform")

    def refuse(*_, **__):
        raise AssertionError("torch was asked for what a kernel does")

    monkeypatch.setattr(kernels, "usable", lambda tensor: True)
    monkeypatch.setattr(rows, "embedding_bag", refuse)
    monkeypatch.setattr(cross_attention, "sampled_product", refuse)
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(selection.MAX_SPARSE_DENSITY, device, 1.0)


@pytest.mark.parametrize(
    ("n", "shared", "probabilities"),
    [
        *((5, shared, probabilities) for shared in (True, False) for probabilities in (True, False)),
        (1, True, True),
        (1, False, False),
        (0, True, False),
        (0, False, True),
    ],
)
def test_outputs_and_gradients_equal_the_plain_formulation(always_kernels, probabilities, shared, n):
    given = example(n=n, m=90, d=6, shared=shared, with_bias=n != 1)
    query, keys, values, bias = (t if t is None else t.detach().to(DEVICE).requires_grad_() for t in given)
    values = keys if shared else values
    leaves = [t for t in (query, keys, None if shared else values, bias) if t is not None]
    acts_weight, context_weight = (torch.randn(n, width, dtype=torch.float64, device=DEVICE) for width in (90, 6))

    def gradients(acts, context):
        loss = (dense(acts) * acts_weight).sum() + (context * context_weight).pow(2).sum()
        return torch.autograd.grad(loss, leaves)

    ours = attend(query, keys, values, bias, gate_scale=0.7, probabilities=probabilities)
    acts, context = plain(query, keys, values, bias, 0.7, probabilities)
    torch.testing.assert_close(dense(ours.acts), acts, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.context, context, rtol=0, atol=1e-12)
    for mine, autograds in zip(gradients(ours.acts, ours.context), gradients(acts, context), strict=True):
        torch.testing.assert_close(mine, autograds, rtol=1e-10, atol=1e-10)


def fake(is_cuda=True, dtype=torch.float32):
    return SimpleNamespace(is_cuda=is_cuda, dtype=dtype, device=torch.device("cuda", 0))


def test_kernels_serve_float_tensors_on_a_gpu_that_triton_knows(monkeypatch):
    monkeypatch.setattr(kernels, "_triton_installed", lambda: True)
    monkeypatch.setattr(kernels, "_supported_by_triton", lambda device: True)
    monkeypatch.setattr(kernels, "_passes_self_check", lambda device: True)
    assert kernels.usable(fake())
    assert kernels.usable(fake(dtype=torch.float64))
    assert not kernels.usable(fake(dtype=torch.bfloat16))
    assert not kernels.usable(fake(is_cuda=False))
    for missing in ("_triton_installed", "_supported_by_triton", "_passes_self_check"):
        with monkeypatch.context() as without:
            without.setattr(kernels, missing, lambda *_: False)
            assert not kernels.usable(fake())
    monkeypatch.setattr(kernels, "ENABLED", False)
    assert not kernels.usable(fake())


def test_the_self_check_passes_and_sees_a_wrong_support(monkeypatch):
    pytest.importorskip("triton", reason="the kernels need Triton, which has no wheel for this platform")
    from sae_lens_sparsemax.attention.kernels import selection

    device = torch.device(DEVICE)
    assert kernels._differences(device) is None
    right = selection.select
    monkeypatch.setattr(selection, "select", lambda z, b: right(z, 2 * b))
    assert kernels._differences(device) == "selection finds another support"


def test_a_device_that_fails_the_self_check_is_left_to_torch_with_a_warning(monkeypatch):
    pytest.importorskip("triton", reason="the kernels need Triton, which has no wheel for this platform")

    def broken(device):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(kernels, "_differences", broken)
    monkeypatch.setattr(kernels, "_triton_installed", lambda: True)
    monkeypatch.setattr(kernels, "_supported_by_triton", lambda device: True)
    kernels._passes_self_check.cache_clear()
    with pytest.warns(UserWarning, match="not used on cuda:0.*no kernel image"):
        assert not kernels.usable(fake())
    kernels._passes_self_check.cache_clear()
