import dataclasses

import pytest
import torch
from sae_lens import SAE, StandardSAEConfig, TopKSAEConfig
from sae_lens.saes.abstopk_sae import AbsTopKSAE, AbsTopKSAEConfig

from sae_lens_sparsemax.evaluation.monosemanticity import MonosemanticityAccumulator
from sae_lens_sparsemax.explore.gather import gather, state_of
from tests.support.small_sae import D_IN
from tests.support.streams import RandomStream, dense_acts, inference_sae, inference_sae_of_passes, sparse

KEPT = {"n_examples": 3, "n_showcase": 4, "progress": False}


@pytest.mark.parametrize("some_left_out", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 23])
def test_it_counts_what_a_dense_table_of_all_activations_says(some_left_out, batch_size):
    sae, stream = inference_sae(), RandomStream(batch_size=batch_size, some_left_out=some_left_out, n_classes=3)
    statistics = gather(sae, stream, **KEPT)
    acts = dense_acts(sae, stream)
    tokens = acts[stream.keep] if stream.keep is not None else acts.flatten(0, 1)
    assert statistics.n_tokens == len(tokens) and statistics.n_samples == stream.n_samples
    assert torch.equal(statistics.n_active, (tokens != 0).sum(0))
    assert torch.equal(statistics.n_active_samples, (acts != 0).any(1).sum(0))
    # The activations are float32, and products of other batch sizes may round them otherwise.
    torch.testing.assert_close(statistics.sum, tokens.double().sum(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(statistics.frequency(), (tokens != 0).double().mean(0))
    fires = (tokens != 0).any(0)
    torch.testing.assert_close(statistics.highest[fires], tokens.masked_fill(tokens == 0, -torch.inf).amax(0)[fires])
    assert statistics.reconstruction.l0.counts.tolist() == torch.bincount((tokens != 0).sum(1)).tolist()
    counts = statistics.histograms.counts.sum(-1)
    assert torch.equal(counts.long(), statistics.n_active)
    assert statistics.classes is not None
    for label in range(3):
        mine = acts[stream.labels == label]
        assert torch.equal(statistics.classes.active[label].long(), (mine != 0).any(1).sum(0))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_activations_below_zero_count_by_their_size(kind):
    torch.manual_seed(0)
    sae = AbsTopKSAE(AbsTopKSAEConfig(d_in=D_IN, d_sae=20, k=3))
    stream = RandomStream(kind=kind, n_classes=3)
    statistics, acts = gather(sae, stream, **KEPT), dense_acts(sae, stream)
    assert (acts < 0).any() and (acts > 0).any()
    sizes = {"by mean": acts.abs().mean(1), "by strongest": acts.abs().amax(1)}
    kinds = [("by strongest", statistics.examples)]
    if statistics.by_highest is not None:
        kinds = [("by mean", statistics.examples), ("by strongest", statistics.by_highest)]
    for name, examples in kinds:
        torch.testing.assert_close(examples.score.clamp(min=0), sizes[name].topk(3, dim=0).values.T)
    flat = acts.flatten(0, 1)
    strongest = flat.gather(0, flat.abs().argmax(0, keepdim=True))[0]
    fires = statistics.n_active > 0
    torch.testing.assert_close(statistics.strongest_activation()[fires], strongest[fires])
    assert (strongest < 0).any()
    assert statistics.classes is not None
    torch.testing.assert_close(statistics.classes.mass.sum(0), sizes["by mean"].sum(0))


@pytest.mark.parametrize("some_left_out", [False, True])
def test_it_counts_the_activations_that_only_a_later_pass_selected(some_left_out, tmp_path):
    sae, stream = inference_sae_of_passes(tmp_path), RandomStream(some_left_out=some_left_out, batch_size=7)
    statistics = gather(sae, stream, **KEPT)
    first = sae.first_passes(stream.acts.flatten(0, 1)).to_dense()
    kept = first if stream.keep is None else first[stream.keep.flatten()]
    assert torch.equal(statistics.n_active, (kept > 0).sum(0))
    assert torch.equal(statistics.n_later, (kept == 2).sum(0))
    fires = statistics.n_active > 0
    share = (kept == 2).sum(0) / (kept > 0).sum(0)
    torch.testing.assert_close(statistics.later_share()[fires], share[fires].double())
    assert gather(inference_sae(), stream, **KEPT).later_share() is None


def test_the_showcase_holds_every_activation_of_the_first_samples():
    sae, stream = inference_sae(), RandomStream()
    showcase = gather(sae, stream, **KEPT).showcase
    restored = torch.zeros(4, stream.n_tokens, sae.cfg.d_sae)
    restored[showcase.place, showcase.token, showcase.concept] = showcase.value
    assert showcase.ids.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(restored, dense_acts(sae, stream)[:4])


def test_monosemanticity_is_that_of_the_mean_over_an_images_tokens():
    sae, stream = inference_sae(), RandomStream(d_embedding=6)
    statistics = gather(sae, stream, **KEPT)
    oracle = MonosemanticityAccumulator(sae.cfg.d_sae, 6)
    oracle.add(sparse(dense_acts(sae, stream).mean(1, keepdim=True)), stream.embeddings)
    assert statistics.monosemanticity is not None
    torch.testing.assert_close(statistics.monosemanticity.scores(), oracle.scores(), equal_nan=True, atol=1e-5, rtol=0)


@pytest.mark.parametrize("has_passes", [False, True])
@pytest.mark.parametrize("stop_before", [4, 16])
def test_a_stopped_run_goes_on_and_ends_with_the_same_to_the_bit(tmp_path, stop_before, has_passes):
    settings = {"n_classes": 3, "d_embedding": 6, "some_left_out": True}
    sae = inference_sae_of_passes(tmp_path) if has_passes else inference_sae()
    whole = gather(sae, RandomStream(**settings), **KEPT)
    state_file = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        stopped = RandomStream(**settings, stop_before=stop_before)
        gather(sae, stopped, state_file=state_file, seconds_between_saves=-1, **KEPT)

    class Remembers(RandomStream):
        def batches(self, start, *wanted):
            self.started_at = start
            return super().batches(start, *wanted)

    stream = Remembers(**settings)
    resumed = gather(sae, stream, state_file=state_file, **KEPT)
    assert stream.started_at == stop_before
    expected, found = state_of(whole), state_of(resumed)
    assert expected.keys() == found.keys() and ("n_later" in found) == has_passes
    for name in expected:
        assert torch.equal(expected[name].nan_to_num(), found[name].nan_to_num()), name


def test_what_was_gathered_for_another_sae_is_not_gone_on_with(tmp_path):
    state_file = tmp_path / "state.safetensors"
    gather(inference_sae(), RandomStream(), state_file=state_file, **KEPT)
    other = inference_sae()
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    found = gather(other, RandomStream(), state_file=state_file, **KEPT)
    expected = gather(other, RandomStream(), **KEPT)
    assert torch.equal(found.sum, expected.sum)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (TopKSAEConfig(D_IN, 20, k=2), {"k": 6}),
        (StandardSAEConfig(D_IN, 20), {"apply_b_dec_to_input": False}),
        (StandardSAEConfig(D_IN, 20), {"normalize_activations": "layer_norm"}),
    ],
)
def test_what_was_gathered_under_other_settings_of_the_sae_is_not_gone_on_with(tmp_path, make, other):
    state_file, found = tmp_path / "state.safetensors", []
    for cfg in (make, dataclasses.replace(make, **other)):
        torch.manual_seed(0)
        sae = SAE.get_sae_class_for_architecture(make.architecture())(cfg)
        found.append(gather(sae, RandomStream(), state_file=state_file, **KEPT))
        assert torch.equal(found[-1].sum, gather(sae, RandomStream(), **KEPT).sum)
    cfg.metadata.model_name = "moved"  # where things lie, and what else metadata tell, decides nothing
    stopped = RandomStream(stop_before=0)
    assert torch.equal(gather(sae, stopped, state_file=state_file, **KEPT).sum, found[-1].sum)


def test_a_state_file_cut_short_is_left_aside(tmp_path):
    state_file = tmp_path / "state.safetensors"
    whole = gather(inference_sae(), RandomStream(), state_file=state_file, **KEPT)
    state_file.write_bytes(state_file.read_bytes()[:100])
    assert torch.equal(gather(inference_sae(), RandomStream(), state_file=state_file, **KEPT).sum, whole.sum)


@pytest.mark.parametrize("said", [4, 6, 10])
def test_samples_of_other_tokens_than_the_stream_says_are_refused(said):
    stream = RandomStream(n_tokens=5)
    stream.n_tokens = said
    with pytest.raises(ValueError, match=f"samples must be of {said} tokens each, got '20 of 4 together'"):
        gather(inference_sae(), stream, **KEPT)


def test_no_sample_at_all_is_refused():
    with pytest.raises(ValueError, match="no sample"):
        gather(inference_sae(), RandomStream(n_samples=0), **KEPT)
