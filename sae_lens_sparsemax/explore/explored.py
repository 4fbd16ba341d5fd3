"""What `explore` has gathered, read back from its folder of pages, so that nothing is computed twice."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens import SAE
from torch import nn

from sae_lens_sparsemax.explore.pages.scripts import decode_levels, read_script
from sae_lens_sparsemax.explore.pages.site import MANIFEST
from sae_lens_sparsemax.models.saved_saes import load_sae, place_of, require_sae
from sae_lens_sparsemax.settings.sentences import must_be

PAGES = "explore"
"""The folder of an SAE's pages inside its own."""
_PROBED = 64
# Cosines of two decoders that differ lie some 1/√d apart; those of one differ by its rounding to half precision.
_COSINE_TOLERANCE = 2e-3


class Example(NamedTuple):
    """One of the samples on which a concept is strongest."""

    sample: int
    """Its number in the data set's order."""
    score: float
    """What it is ranked by: the size of its largest activation in a context, its mean size over an image's tokens."""
    acts: list[float]
    """Activation at each token, in steps of a sixtieth of the largest."""

    @property
    def peak(self) -> int:
        """The first token on which the concept is strongest."""
        return max(range(len(self.acts)), key=lambda place: abs(self.acts[place]))


class Explored:
    """One SAE of a folder of pages.

    Args:
        folder: with the pages.
        number: which of the SAEs in it, from 0.

    Raises:
        ValueError: the folder is damaged, or has fewer SAEs.
    """

    def __init__(self, folder: Path, number: int = 0) -> None:
        self.folder, self.number = folder, number
        self.site: dict[str, Any] = read_script(folder, MANIFEST)
        """What all pages know: `kind`, `tokens` of a sample, `classes`, `grid` and `prefix` of patches, ..."""
        if not 0 <= number < len(self.site["saes"]):
            raise must_be("number", f"below {len(self.site['saes'])}, the SAEs in these pages", number)
        self.summary: dict[str, Any] = self.site["saes"][number]
        """Model, hook, data and metrics."""
        self.table: dict[str, Any] = read_script(folder, f"{number}/table")
        """A list for each column, a value for each concept."""
        self._shard = lru_cache(maxsize=2)(lambda shard: read_script(folder, f"{number}/concepts-{shard}"))
        self._contexts = lru_cache(maxsize=64)(lambda shard: read_script(folder, f"contexts-{shard}"))

    @property
    def d_sae(self) -> int:
        """How many concepts there are."""
        return self.summary["d_sae"]

    def concept(self, concept: int) -> dict[str, Any]:
        """What a concept's page shows, by the keys of `pages.concepts`.

        Raises:
            ValueError: there is no such concept.
        """
        if not 0 <= concept < self.d_sae:
            raise must_be("concept", f"between 0 and {self.d_sae - 1}", concept)
        return self._shard(concept // self.site["shard"])[concept % self.site["shard"]]

    def concepts(self) -> Iterator[dict[str, Any]]:
        """What the pages of all concepts show, in their order."""
        return map(self.concept, range(self.d_sae))

    def examples(self, concept: int) -> list[Example]:
        """The samples that are kept of a concept, strongest first."""
        return [
            Example(sample, score, [peak * level for level in decode_levels(text, self.site["tokens"])])
            for sample, score, peak, text in self.concept(concept)["e"]
        ]

    def tokens(self, sample: int) -> list[str]:
        """The tokens of a context as they read in its text."""
        return self._contexts(sample // self.site["contextShard"])[str(sample)]

    def labels(self) -> dict[int, str]:
        """What `explore` guessed that concepts are about."""
        guesses = self.table.get("guess", self.table["label"])
        return {concept: label for concept, label in enumerate(guesses) if label}


def find_explored(source: Path | str) -> Explored | None:
    """The pages in a folder, or in the place of an SAE; None where there are none."""
    place = place_of(source)
    return next(
        (Explored(each) for each in (place, place / PAGES) if (each / "data" / f"{MANIFEST}.js").is_file()), None
    )


def decoder_probe(rows: torch.Tensor) -> torch.Tensor:
    """(n,) what tells a decoder from others, norms aside: cosines of some of its (d_sae, d_in) rows with one vector."""
    some = rows[:: max(1, len(rows) // _PROBED)].detach().float().cpu()
    return nn.functional.cosine_similarity(some, torch.arange(1.0, rows.shape[1] + 1).cos()[None], dim=-1)


def is_same_decoder(one: list[float] | None, other: list[float] | None) -> bool:
    """Whether two probes may be of one decoder; earlier versions kept none, and nothing speaks against those."""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(abs(a - b) <= _COSINE_TOLERANCE for a, b in zip(one, other, strict=True))


def find_explored_of(found: Explored, sae: SAE[Any]) -> Explored | None:
    """Of pages, which may be of several SAEs, those of this one, told by its decoder; None if they are of none."""
    norms, mine = sae.W_dec.detach().float().norm(dim=-1).cpu(), decoder_probe(sae.W_dec).tolist()
    for number in range(len(found.site["saes"])):
        pages = Explored(found.folder, number)
        told = torch.tensor([norm or 0.0 for norm in pages.table["norm"]], dtype=torch.float32)
        has_norms = told.shape == norms.shape and torch.allclose(told, norms, rtol=2e-3, atol=1e-6)
        if has_norms and is_same_decoder(pages.summary.get("probe"), mine):
            return pages
    return None


def open_explored(source: Path | str) -> Explored | None:
    """The pages in a folder of pages as they are, or those of an SAE in a folder or on the hub; None where it has none.

    Raises:
        ValueError: there is neither, or the pages are of another SAE.
    """
    found, place = find_explored(source), place_of(source)
    if found is not None and found.folder == place:
        return found
    require_sae(str(source))
    if found is None:
        return None
    mine = find_explored_of(found, load_sae(str(source)))
    if mine is None:
        raise ValueError(f"The pages in {str(found.folder)!r} are of another SAE; explore {str(source)!r} again.")
    return mine
