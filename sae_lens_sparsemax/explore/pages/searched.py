"""What the search reads: the concepts that have each sample among their examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sae_lens_sparsemax.explore.pages.scripts import encode_all_levels, rounded, write_script
from sae_lens_sparsemax.explore.pages.shown_samples import CONTEXT_SHARD
from sae_lens_sparsemax.explore.samples import TopExamples


def write_found(folder: Path, sae: int, examples: TopExamples, n_examples: int) -> None:
    """Write data/SAE/found.js: for each sample the concepts that it is an example of, each with its peak's token."""
    peak = examples.peak_places()
    sample = examples.sample[:, :n_examples]
    concept, place = (sample >= 0).nonzero().T
    of = sample[concept, place]
    order = of.argsort(stable=True)
    pairs = torch.stack([concept, peak[concept, place]], -1)[order]
    numbers, counts = of[order].unique_consecutive(return_counts=True)
    groups = pairs.split(counts.tolist())
    write_script(
        folder, f"{sae}/found", {n: group.flatten().tolist() for n, group in zip(numbers.tolist(), groups, strict=True)}
    )


def write_active(
    folder: Path,
    sae: int,
    kinds: Sequence[TopExamples],
    n_examples: Sequence[int],
    shards: Sequence[int],
    *,
    progress: bool,
) -> None:
    """Write data/SAE/active-N.js for each data/contexts-N.js, whose numbers are `shards`.

    For each context that is an example: every concept that has it among its examples of any kind, once, with its peak
    and its activations, as concepts' own pages have them, one after the other in one list.
    """
    entries = []
    for kind, (examples, n) in enumerate(zip(kinds, n_examples, strict=True)):
        concept, place = (examples.sample[:, :n] >= 0).nonzero().T
        entries.append(torch.stack([examples.sample[concept, place], concept, torch.full_like(concept, kind), place]))
    sample, concept, kind, place = torch.cat(entries, dim=1)
    # By context, and of each by concept; an example of several kinds stands in the first of them.
    order = concept.argsort(stable=True)
    order = order[sample[order].argsort(stable=True)]
    pairs = torch.stack([sample, concept])[:, order]
    is_first = torch.cat([torch.ones(min(1, len(order)), dtype=torch.bool), (pairs[:, 1:] != pairs[:, :-1]).any(0)])
    order = order[is_first]
    filled, counts = (sample[order] // CONTEXT_SHARD).unique_consecutive(return_counts=True)
    parts = dict(zip(filled.tolist(), order.split(counts.tolist()), strict=True))
    for shard in tqdm(shards, desc="Search", disable=not progress, leave=False):
        lines: dict[int, list[Any]] = {}
        mine = parts.get(shard, order[:0])
        levels = kinds[0].levels.new_empty(len(mine), kinds[0].levels.shape[-1])
        peaks = kinds[0].peak.new_empty(len(mine))
        for k, examples in enumerate(kinds):
            here = kind[mine] == k
            at = (concept[mine][here], place[mine][here])
            levels[here], peaks[here] = examples.levels[at], examples.peak[at]
        columns = (sample[mine].tolist(), concept[mine].tolist(), peaks.tolist(), encode_all_levels(levels))
        for number, c, peak, text in zip(*columns, strict=True):
            lines.setdefault(number, []).extend((c, rounded(peak), text))
        write_script(folder, f"{sae}/active-{shard}", lines)
