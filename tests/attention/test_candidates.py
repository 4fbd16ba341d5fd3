"""Scores in bfloat16 that exceed given numbers, found as integers, are those that comparing them finds."""

from __future__ import annotations

import pytest
import torch

from sae_lens_sparsemax.attention.candidates import CHUNK, RankedScores

N_TOKENS, N_CHUNKS = 20, 6
KINDS = {
    "Gaussian": lambda z: z,
    "all negative": lambda z: -z.abs() - 0.1,
    "one negative chunk": lambda z: torch.cat([-z[:CHUNK].abs(), z[CHUNK:]]),
    "ties": lambda z: (4 * z).round() / 4,
    "zeros of both signs": lambda z: torch.where(z > 0.5, 0.0, torch.where(z < -0.5, -0.0, z * 1e-3)),
    "denormals": lambda z: z * 1e-39,
    "huge": lambda z: z * 1e38,
    "padding": lambda z: torch.cat([z[: -CHUNK // 2], torch.full_like(z[-CHUNK // 2 :], -torch.inf)]),
    "negative beside padding": lambda z: torch.cat(
        [z[:-CHUNK], -z[-CHUNK:-5].abs(), torch.full((5, N_TOKENS), -torch.inf)]
    ),
}
LEAST = {
    "positive": lambda z, some: some.abs() + 1e-3 * z.abs().amax(),
    "of both signs": lambda z, some: some,
    "a score": lambda z, some: z.view(N_CHUNKS, CHUNK, N_TOKENS)[:, 3].clamp(min=-3e38),
    "just below a score": lambda z, some: torch.nextafter(
        z.view(N_CHUNKS, CHUNK, N_TOKENS)[:, 3].clamp(min=-3e38), torch.tensor(-torch.inf)
    ),
    "nothing": lambda z, some: torch.full_like(some, -torch.inf),
    "zero": lambda z, some: torch.zeros_like(some),
}


@pytest.mark.parametrize("least", LEAST)
@pytest.mark.parametrize("kind", KINDS)
def test_what_exceeds_its_number_is_found_by_token_and_concept(kind: str, least: str) -> None:
    generator = torch.Generator().manual_seed(0)
    z = KINDS[kind](torch.randn(N_CHUNKS * CHUNK, N_TOKENS, generator=generator)).bfloat16()
    must = LEAST[least](z.float(), z.float().view(N_CHUNKS, CHUNK, N_TOKENS).amax(1) / 2).clamp(max=3e38)
    by_chunk = z.view(N_CHUNKS, CHUNK, N_TOKENS).float()
    expected = (by_chunk > must[:, None]).view(-1, N_TOKENS).T.nonzero()
    ranked = RankedScores(z.clone())

    maxima = by_chunk.amax(1)
    assert (ranked.maxima().float() <= maxima).all()
    decisive = (by_chunk > 0).any(1) | (by_chunk == 0).all(1) | (by_chunk <= 0).all((0, 1))
    assert torch.equal(ranked.maxima().float()[decisive], maxima[decisive])
    if (must < 0).any():
        ranked.order_negatives()
        torch.testing.assert_close(ranked.maxima().float(), maxima, rtol=0, atol=0)
    found = ranked.above(must.contiguous(), torch.inf)
    assert found is not None
    found = torch.stack(found, 1)

    value, number = z.float()[found[:, 1], found[:, 0]], must.repeat_interleave(CHUNK, 0)[found[:, 1], found[:, 0]]
    # A zero may be found above the zero of the other sign.
    assert ((value > number) | ((value == 0) & (number == 0))).all()
    found = found[value > number]
    assert torch.equal(found, expected)


def test_more_than_are_wanted_are_not_listed() -> None:
    z = torch.zeros(CHUNK, 3, dtype=torch.bfloat16)
    z[:2] = 1
    least = torch.full((1, 3), 0.5)
    assert RankedScores(z.clone()).above(least, 5.9) is None
    assert RankedScores(z.clone()).above(least, 2) is None
    found = RankedScores(z.clone()).above(least, 6)
    assert found is not None
    assert found[1].tolist() == [0, 1] * 3
