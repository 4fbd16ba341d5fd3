"""The projection against entmax, its own mathematics and finite differences."""

import re
from functools import partial

import pytest
import torch
from entmax import sparsemax as entmax_sparsemax

from sae_lens_sparsemax.attention.gate import gate, sparsemax
from sae_lens_sparsemax.attention.support import select_support
from sae_lens_sparsemax.attention.traceable import traceable_gate


def test_the_papers_algorithm_by_hand():
    # Σ over {0.8, 0.6} is 1.4, so τ = (1.4 − 1)/2 = 0.2 and 0.1 stays out.
    torch.testing.assert_close(sparsemax(torch.tensor([0.8, 0.1, 0.6])), torch.tensor([0.6, 0.0, 0.4]))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_sparsemax_equals_entmax_along_any_dimension(dim: int):
    z = torch.randn(4, 33, 9, dtype=torch.float64)
    torch.testing.assert_close(sparsemax(z, dim), entmax_sparsemax(z, dim))


def test_sparsemax_is_a_projection_onto_the_simplex():
    z = torch.randn(20, 500, dtype=torch.float64)
    p = sparsemax(z)
    torch.testing.assert_close(p.sum(-1), torch.ones(20, dtype=torch.float64))
    assert (p >= 0).all()
    torch.testing.assert_close(sparsemax(p), p)
    torch.testing.assert_close(sparsemax(z + 3.0), p)


def test_minus_infinity_masks_an_entry():
    z = torch.tensor([[0.3, -torch.inf, 0.2], [-torch.inf, -torch.inf, -5.0]])
    torch.testing.assert_close(sparsemax(z), torch.tensor([[0.55, 0.0, 0.45], [0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("probabilities", [True, False])
def test_gradients_of_the_gate_are_those_of_finite_differences(probabilities: bool):
    z = torch.randn(3, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: gate(z, 1.7, probabilities), z)


def test_gate_scale_acts_as_a_multiple_of_the_scores():
    z = torch.randn(6, 300, dtype=torch.float64)
    torch.testing.assert_close(gate(z, 2.5), sparsemax(2.5 * z))
    scores = gate(z, 2.5, probabilities=False)
    assert torch.equal(scores, torch.where(sparsemax(2.5 * z) > 0, z, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_selected_in_float32_and_returned_as_they_came(dtype: torch.dtype):
    z = torch.randn(5, 700).to(dtype)
    p = sparsemax(z)
    assert p.dtype == dtype
    assert torch.equal(p > 0, sparsemax(z.float()) > 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.complex64])
@pytest.mark.parametrize(
    "of", [sparsemax, gate, select_support, partial(traceable_gate, gate_scale=1.0, probabilities=True)]
)
def test_scores_that_are_not_floating_point_are_refused(of, dtype: torch.dtype):
    message = re.escape(f"scores must be floating point, got {dtype}")
    with pytest.raises(ValueError, match=message):
        of(torch.ones(2, 3, dtype=dtype))
    if of in (sparsemax, gate):
        with pytest.raises(ValueError, match=message):
            torch.func.vmap(of)(torch.ones(2, 3, dtype=dtype))


def test_bad_input_is_refused_with_what_was_given():
    with pytest.raises(ValueError, match="gate_scale must be positive, got -1"):
        gate(torch.zeros(3), -1.0)
    with pytest.raises(ValueError, match="gate_scale must be finite, got inf"):
        gate(torch.zeros(3), torch.inf)
    with pytest.raises(ValueError, match="scalar"):
        gate(torch.tensor(1.0))
