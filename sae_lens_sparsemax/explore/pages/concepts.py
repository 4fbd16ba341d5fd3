"""The pages of concepts as data: a table of all of them, and shards with what each page shows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sae_lens_sparsemax.evaluation.naming import ConceptName
from sae_lens_sparsemax.explore.cofiring import Neighbours
from sae_lens_sparsemax.explore.interest import ConceptMap
from sae_lens_sparsemax.explore.pages.scripts import encode_levels, rounded, write_script
from sae_lens_sparsemax.explore.samples import LEVELS, TopExamples
from sae_lens_sparsemax.explore.statistics import ConceptStatistics
from sae_lens_sparsemax.explore.streams import ImageStream, TextStream
from sae_lens_sparsemax.explore.weights import TokenLogits

SHARD = 128
"""Concepts in a file."""
_CLASSES_SHOWN = 10
_CLASSES_IN_LABEL = 3


@dataclass
class SAEReport:
    """All that is shown of one SAE on one data set, before it is written."""

    name: str
    """What it is called on the pages."""
    architecture: str
    """Under which it was trained."""
    stream: ImageStream | TextStream
    """What it was explored on."""
    statistics: ConceptStatistics
    """What was gathered."""
    norms: torch.Tensor
    """Norm of each decoder row, shape (d_sae,)."""
    probe: torch.Tensor
    """See `explored.decoder_probe`."""
    near: Neighbours
    """Nearest concepts by the cosine of decoder rows."""
    cofiring: Neighbours
    """Nearest concepts by the tokens they share."""
    interest: torch.Tensor
    """How much each concept promises, shape (d_sae,); see `interest.interest`."""
    map: ConceptMap
    """The most interesting ones in two dimensions."""
    logits: TokenLogits | None = None
    """Tokens promoted and suppressed; None where there is no unembedding."""
    names: list[ConceptName | None] | None = None
    """A guess at a name of each concept; None where there is none."""


def class_labels(statistics: ConceptStatistics, class_names: list[str]) -> list[str]:
    """The classes that most of each concept's activation falls to, as its label; "" without classes."""
    if statistics.classes is None:
        return [""] * statistics.d_sae
    n = min(_CLASSES_IN_LABEL, len(class_names))
    mass, top = statistics.classes.mass.topk(n, dim=0)
    total = statistics.classes.mass.sum(0)
    # A class is named if it has a share worth naming, and the first one always.
    named = (mass >= 0.1 * total) & (mass > 0)
    named[0] = mass[0] > 0
    share = (100 * mass / total.clamp(min=torch.finfo(total.dtype).tiny)).round().int()
    return [
        ", ".join(f"{class_names[k]} {percent} %" for k, percent, shown in zip(*columns, strict=True) if shown)
        for columns in zip(top.T.tolist(), share.T.tolist(), named.T.tolist(), strict=True)
    ]


def write_table(folder: Path, sae: int, data: SAEReport, labels: list[str], *, thumbnails: bool) -> None:
    """Write data/SAE/table.js: one list for each column."""
    statistics = data.statistics
    entropy = statistics.classes.entropy() if statistics.classes is not None else None
    later = statistics.later_share()
    mono = statistics.monosemanticity.scores() if statistics.monosemanticity is not None else None
    nearest = zip(data.near.concept[:, 0].tolist(), data.near.value[:, 0].tolist(), strict=True)
    write_script(
        folder,
        f"{sae}/table",
        {
            "n_tokens": statistics.n_tokens,
            "label": labels,
            "active": statistics.n_active.tolist(),
            "samples": statistics.n_active_samples.tolist(),
            "mean": _column(statistics.mean_activation()),
            "max": _column(statistics.strongest_activation()),
            "later": None if later is None else _column(later),
            "norm": _column(data.norms),
            "interest": [rounded(value, 3) for value in data.interest.tolist()],
            "entropy": None if entropy is None else _column(entropy),
            "mono": None if mono is None else _column(mono),
            "near": [None if concept < 0 else [concept, rounded(value, 3)] for concept, value in nearest],
            "thumb": statistics.examples.sample[:, 0].tolist() if thumbnails else None,
        },
    )


def write_map(folder: Path, sae: int, found: ConceptMap) -> None:
    """Write data/SAE/map.js: concepts, their places, how they were placed."""
    x, y = ([rounded(value) for value in column] for column in found.place.T.tolist())
    write_script(folder, f"{sae}/map", {"concept": found.concept.tolist(), "x": x, "y": y, "method": found.method})


def write_concepts(folder: Path, sae: int, data: SAEReport, n_examples: list[int], *, progress: bool) -> None:
    """Write data/SAE/concepts-N.js, each with SHARD concepts."""
    d_sae = data.statistics.d_sae
    for first in tqdm(range(0, d_sae, SHARD), desc="Concepts", disable=not progress, leave=False):
        shard = [_concept(data, c, n_examples) for c in range(first, min(first + SHARD, d_sae))]
        write_script(folder, f"{sae}/concepts-{first // SHARD}", shard)


def _concept(data: SAEReport, c: int, n_examples: list[int]) -> dict[str, Any]:
    """What `concept.js` shows: examples, those of images by their strongest patch (m), some drawn by chance (d),
    histogram, near and co-firing (f) concepts, classes, promoted and suppressed tokens, a guess at a name."""
    statistics = data.statistics
    low, width, counts = statistics.histograms.trimmed(c)
    page: dict[str, Any] = {
        "e": _examples(statistics.examples, c, n_examples[0]),
        "h": [low, width, counts],
        "n": _pairs(data.near, c),
        "f": _pairs(data.cofiring, c),
    }
    if statistics.by_highest is not None:
        page["m"] = _examples(statistics.by_highest, c, n_examples[1])
    if statistics.drawn is not None:
        page["d"] = _drawn(statistics, c, n_examples[-1])
    if statistics.classes is not None and statistics.n_active[c] > 0:
        share = statistics.classes.share(c)
        best = share.argsort(descending=True, stable=True)[:_CLASSES_SHOWN]
        page["c"] = [
            [k, rounded(share[k].item()), int(statistics.classes.active[k, c])] for k in best.tolist() if share[k] > 0
        ]
    if data.logits is not None and isinstance(data.stream, TextStream):
        for key, tokens, values in (
            ("p", data.logits.promoted[c], data.logits.promoted_by[c]),
            ("s", data.logits.suppressed[c], data.logits.suppressed_by[c]),
        ):
            page[key] = [
                [data.stream.at_hook.token_text(t), rounded(v, 3)]
                for t, v in zip(tokens.tolist(), values.tolist(), strict=True)
            ]
    if data.names is not None and (name := data.names[c]) is not None:
        page["name"] = [name.name, rounded(name.similarity, 3)]
    return page


def _examples(examples: TopExamples, c: int, n: int) -> list[list[Any]]:
    """Sample, score, peak and activations of the best examples."""
    rows = zip(
        examples.sample[c, :n].tolist(), examples.score[c, :n].tolist(), examples.peak[c, :n].tolist(), strict=True
    )
    return [
        [sample, rounded(score), rounded(peak), encode_levels(examples.levels[c, place])]
        for place, (sample, score, peak) in enumerate(rows)
        if sample >= 0
    ]


def _drawn(statistics: ConceptStatistics, c: int, n: int) -> list[list[Any]]:
    """The same of drawn examples, strongest first; their scores, by which they were not chosen, from their levels."""
    assert statistics.drawn is not None
    found = _examples(statistics.drawn, c, n)
    levels = statistics.drawn.levels[c, : len(found)].float().abs() / LEVELS
    scores = (levels.mean(-1) if statistics.by_highest is not None else levels.amax(-1)) * statistics.drawn.peak[
        c, : len(found)
    ]
    for example, score in zip(found, scores.tolist(), strict=True):
        example[1] = rounded(score)
    return [found[place] for place in scores.argsort(descending=True, stable=True).tolist()]


def _pairs(neighbours: Neighbours, c: int) -> list[list[Any]]:
    pairs = zip(neighbours.concept[c].tolist(), neighbours.value[c].tolist(), strict=True)
    return [[concept, rounded(value, 3)] for concept, value in pairs if concept >= 0]


def _column(values: torch.Tensor) -> list[float | int | None]:
    return [rounded(value) for value in values.tolist()]
