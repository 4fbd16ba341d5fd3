"""Contexts of text as data, and what the examples of a concept peak on."""

from pathlib import Path

import torch

from sae_lens_sparsemax.explore.examples import TopExamples
from sae_lens_sparsemax.explore.pages.scripts import write_script
from sae_lens_sparsemax.explore.texts import TextStream

SHARD = 64
"""Numbers of contexts in a file, of which only those that are shown are in it."""
BYTES_PER_TOKEN = 9
"""What a token takes in such a file, on ordinary English."""
_TOKENS_IN_LABEL = 4


def write_contexts(
    folder: Path, stream: TextStream, samples: torch.Tensor, *, progress: bool
) -> dict[int, torch.Tensor]:
    """Write data/contexts-N.js with the texts of the tokens of every sample, and return the token ids."""
    tokens = dict(stream.contexts(samples, progress=progress))
    shards: dict[int, dict[int, list[str]]] = {}
    for number, ids in tokens.items():
        shards.setdefault(number // SHARD, {})[number] = stream.context_texts(ids.tolist())
    for shard, contexts in shards.items():
        write_script(folder, f"contexts-{shard}", contexts)
    return tokens


def peak_tokens(examples: TopExamples, contexts: dict[int, torch.Tensor]) -> torch.Tensor:
    """Token id at the peak of each example, shape (d_sae, k); -1 where there is none, or its context is not known."""
    place = examples.levels.max(-1).indices
    peaks = torch.full_like(examples.sample, -1)
    numbers = torch.tensor(sorted(contexts), dtype=torch.int64)
    if not len(numbers):
        return peaks
    table = torch.stack([contexts[number] for number in numbers.tolist()])
    row = torch.searchsorted(numbers, examples.sample.clamp(min=0)).clamp(max=len(numbers) - 1)
    known = (numbers[row] == examples.sample) & (examples.sample >= 0)
    peaks[known] = table[row[known], place[known]]
    return peaks


def token_labels(peaks: torch.Tensor, stream: TextStream) -> list[str]:
    """The tokens on which the examples of each concept peak most often, as its label."""
    labels = []
    for row in peaks.tolist():
        found = list(dict.fromkeys(sorted((t for t in row if t >= 0), key=lambda t: -row.count(t))))[:_TOKENS_IN_LABEL]
        texts = (stream.token_text(token).strip(" ").replace("\n", "↵") or "␣" for token in found)
        labels.append(" · ".join(dict.fromkeys(texts)))
    return labels
