"""SAEs inside TransformerLens sessions: HookedSAETransformer and SAETransformerBridge."""

import pytest
import torch
from sae_lens import SAE

from tests.support.host_training import HOOK


@pytest.fixture(params=["HookedSAETransformer", "SAETransformerBridge"])
def session(request, model, bridge):
    """Either kind of model, clean before and after."""
    if request.param == "HookedSAETransformer":
        yield model
    else:
        yield bridge
        bridge.reset_hooks()
        bridge.reset_saes()


@pytest.fixture
def sae(inference_folder):
    return SAE.load_from_disk(inference_folder)


@pytest.fixture
def batch(tokens):
    return tokens[:3]


def resolved_hook(session) -> str:
    """The bridge keeps TransformerLens's older names as aliases, which its caches do not know."""
    return session._resolve_hook_name(HOOK) if hasattr(session, "_resolve_hook_name") else HOOK


def hook_path(session, internal: str = "hook_sae_acts_post") -> str:
    """Where the attached SAE's own hook point is found in the model."""
    return f"{resolved_hook(session)}.{internal}"


@torch.no_grad()
def residual_stream(session, batch):
    """(3, 64, 128) what the SAE gets to see."""
    return session.run_with_cache(batch)[1][resolved_hook(session)]


@torch.no_grad()
def test_an_attached_sae_replaces_the_activations_by_its_reconstruction(session, sae, batch):
    plain = session(batch)
    reconstruction = sae(residual_stream(session, batch))
    expected = session.run_with_hooks(batch, fwd_hooks=[(resolved_hook(session), lambda value, hook: reconstruction)])

    session.add_sae(sae)
    assert list(session.acts_to_saes.values()) == [sae]
    spliced = session(batch)
    torch.testing.assert_close(spliced, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(spliced, plain, atol=0.1)

    session.reset_saes()
    assert torch.equal(session(batch), plain)
    torch.testing.assert_close(session.run_with_saes(batch, saes=[sae]), spliced)
    assert not session.acts_to_saes


@torch.no_grad()
def test_the_cache_holds_what_the_sae_computes(session, sae, batch):
    x = residual_stream(session, batch)
    _, cache = session.run_with_cache_with_saes(batch, saes=[sae])
    acts = cache[hook_path(session)]
    assert acts.shape == (3, 64, 512)
    torch.testing.assert_close(acts, sae.encode(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cache[hook_path(session, "hook_sae_input")], x)
    torch.testing.assert_close(cache[hook_path(session, "hook_sae_recons")], sae(x), rtol=1e-3, atol=1e-3)
    scores = cache[hook_path(session, "hook_sae_acts_pre")]
    assert scores.shape == acts.shape and scores[acts == 0].count_nonzero() > 0


@torch.no_grad()
def test_with_the_error_term_the_model_is_reproduced_exactly(session, sae, batch):
    plain = session(batch)
    with_error = session.run_with_saes(batch, saes=[sae], use_error_term=True)
    torch.testing.assert_close(with_error, plain, rtol=1e-4, atol=1e-4)
    _, cache = session.run_with_cache_with_saes(batch, saes=[sae], use_error_term=True)
    x, error = (cache[hook_path(session, f"hook_sae_{name}")] for name in ("input", "error"))
    torch.testing.assert_close(error, x - sae(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("use_error_term", [False, True])
@torch.no_grad()
def test_clamping_one_concept_moves_the_output_along_its_decoder_row(session, sae, batch, use_error_term):
    """By (new − old activation) · W_dec_i at every token, and by nothing else."""
    acts_name, out_name, concept = hook_path(session), hook_path(session, "hook_sae_output"), 17

    def clamp(acts, hook):
        acts = acts.clone()
        acts[..., concept] = 5.0
        return acts

    _, before = session.run_with_cache_with_saes(batch, saes=[sae], use_error_term=use_error_term)
    seen = []
    with session.saes(saes=[sae], use_error_term=use_error_term):
        session.run_with_hooks(
            batch, fwd_hooks=[(acts_name, clamp), (out_name, lambda value, hook: seen.append(value.clone()))]
        )
    change = 5.0 - before[acts_name][..., concept, None]
    torch.testing.assert_close(seen[0] - before[out_name], change * sae.W_dec[concept], rtol=1e-4, atol=1e-3)


def test_gradients_reach_the_activations_of_the_sae(session, sae, batch):
    kept = {}

    def keep(acts, hook):
        acts.retain_grad()
        kept["acts"] = acts

    with session.saes(saes=[sae]):
        logits = session.run_with_hooks(batch, fwd_hooks=[(hook_path(session), keep)])
        logits[:, -1].logsumexp(-1).sum().backward()
    acts = kept["acts"]
    assert acts.grad.shape == acts.shape and acts.grad.count_nonzero() > 0
    # A concept that is off has a gradient too: what it would do if it were on.
    assert acts.grad[acts == 0].count_nonzero() > 0


@torch.no_grad()
def test_a_training_sae_attaches_as_well(session, sae, trained, batch):
    torch.testing.assert_close(
        session.run_with_saes(batch, saes=[trained]),
        session.run_with_saes(batch, saes=[sae]),
        rtol=1e-2,
        atol=1e-2,
    )


@torch.no_grad()
def test_special_tokens_can_be_left_alone(model, sae, batch):
    model.add_sae(sae, exclude_special_tokens=True)
    _, cache = model.run_with_cache(batch)
    x, out = cache[f"{HOOK}.hook_sae_input"], cache[f"{HOOK}.hook_sae_output"]
    assert torch.equal(out[:, 0], x[:, 0]) and not torch.equal(out[:, 1], x[:, 1])
