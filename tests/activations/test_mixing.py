"""The resumable mixer against SAELens's own mixing buffer, stopped and continued at every batch."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens.training.mixing_buffer import mixing_buffer
from safetensors.torch import load_file, save_file

from sae_lens_sparsemax.activations import mixing as resume
from sae_lens_sparsemax.activations.mixing import ResumableMixer


class Source:
    """Numbered tokens in pieces of uneven size, with a position that can be moved."""

    def __init__(self, n_pieces: int, position: int = 0):
        self.n_pieces, self.position = n_pieces, position

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        if self.position == self.n_pieces:
            raise StopIteration
        self.position += 1
        n_tokens = 3 + (self.position * 7) % 5
        return (100.0 * self.position + torch.arange(n_tokens)).unsqueeze(1).expand(-1, 2).clone()


def host_batches(n_pieces: int, buffer_size: int, batch_size: int, mix_fraction: float) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return list(mixing_buffer(buffer_size, batch_size, Source(n_pieces), mix_fraction))


@given(
    batch_size=st.integers(1, 6),
    extra=st.integers(0, 20),
    mix_fraction=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    stops=st.lists(st.integers(0, 25), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_interrupted_stream_equals_the_hosts_uninterrupted_one(batch_size, extra, mix_fraction, stops):
    buffer_size = batch_size + extra
    expected = host_batches(15, buffer_size, batch_size, mix_fraction)

    torch.manual_seed(0)
    source = Source(15)
    mixer = ResumableMixer(source, buffer_size, batch_size, mix_fraction)
    batches = []
    for steps in stops:
        batches += [batch for _, batch in zip(range(steps), mixer, strict=False)]
        state = mixer.state_dict()
        torch.manual_seed(999)
        source = Source(15, position=source.position)
        mixer = ResumableMixer(source, buffer_size, batch_size, mix_fraction)
        mixer.load_state_dict(state)
    batches += list(mixer)

    assert len(batches) == len(expected)
    assert all(torch.equal(got, want) for got, want in zip(batches, expected, strict=True))


def test_state_survives_a_safetensors_file(tmp_path):
    source = Source(15)
    mixer = ResumableMixer(source, 24, 4, 0.5)
    next(mixer)
    save_file(mixer.state_dict(), tmp_path / "buffer.safetensors")
    resumed = ResumableMixer(Source(15, source.position), 24, 4, 0.5)
    # Drawing on after a save must not reach into what was saved.
    rest = torch.cat(list(mixer))
    resumed.load_state_dict(load_file(tmp_path / "buffer.safetensors"))
    assert torch.equal(torch.cat(list(resumed)), rest)


def test_state_holds_no_more_than_the_buffer():
    mixer = ResumableMixer(Source(15), 24, 4, 0.5)
    next(mixer)
    state = mixer.state_dict()
    assert state["pending"].untyped_storage().nbytes() == state["pending"].nbytes
    assert len(state["pending"]) % 4 == 0
    assert len(state["pending"]) + len(state["storage"]) <= 24 + 7 - 4


def test_batches_carry_no_gradient():
    pieces = iter([torch.ones(8, 2, requires_grad=True)])
    assert not next(ResumableMixer(pieces, 4, 4)).requires_grad


def test_other_settings_are_refused():
    mixer = ResumableMixer(Source(15), 12, 4, 0.5)
    next(mixer)
    with pytest.raises(ValueError, match=r"\(12, 4, 0\.5\).*\(16, 4, 0\.5\)"):
        ResumableMixer(Source(15), 16, 4, 0.5).load_state_dict(mixer.state_dict())


def test_loading_after_the_first_batch_is_refused():
    mixer = ResumableMixer(Source(15), 12, 4)
    next(mixer)
    with pytest.raises(ValueError, match="before the first batch"):
        mixer.load_state_dict(mixer.state_dict())


def test_a_source_of_another_width_is_refused_on_resume():
    mixer = ResumableMixer(Source(15), 12, 4)
    next(mixer)
    other = ResumableMixer(iter([torch.zeros(9, 3)]), 12, 4)
    other.load_state_dict(mixer.state_dict())
    with pytest.raises(ValueError, match=r"shape \(2,\).*shape \(3,\)"):
        list(other)


@pytest.mark.parametrize(("sizes", "message"), [((3, 4, 0.5), "at least batch_size, 4"), ((8, 4, 1.5), "1.5")])
def test_impossible_settings_are_refused_at_once(sizes, message):
    with pytest.raises(ValueError, match=message):
        ResumableMixer(Source(1), *sizes)


def test_a_host_with_other_names_is_named_in_the_error(monkeypatch):
    def mixing_buffer_of_tomorrow(buffer_size, batch_size, activations_loader, mix_fraction):
        yield from activations_loader

    monkeypatch.setattr(resume, "_raw_mixing_buffer", mixing_buffer_of_tomorrow)
    with pytest.raises(RuntimeError, match=r"SAELens .*storage_buffer"):
        ResumableMixer(Source(1), 8, 4)
