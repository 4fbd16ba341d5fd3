"""The parts of an answer to the page, as JSON holds them: concepts at a place, outcomes without and with a change."""

from collections.abc import Mapping
from typing import Any

import torch

from sae_lens_sparsemax.models.encoding import top_concepts
from sae_lens_sparsemax.models.splice import Change

_N_CONCEPTS = 12
_N_OUTCOMES = 8


def first_passes_at(first_passes: torch.Tensor | None, token: int | None) -> dict[int, int]:
    """From active concept to the pass that first selected it, at a token or, for None, at any; empty for one pass."""
    if first_passes is None:
        return {}
    (row, col), number = first_passes.indices(), first_passes.values()
    here = torch.ones_like(row, dtype=torch.bool) if token is None else row == token
    pairs = zip(col[here].tolist(), number[here].tolist(), strict=True)
    # Of several tokens' passes the first is left, as it comes last.
    return dict(sorted(pairs, key=lambda pair: -pair[1]))


def concepts_at(
    acts: torch.Tensor,
    places: torch.Tensor,
    changes: Mapping[int, Change],
    passes: Mapping[int, int],
    labels: Mapping[int, str],
) -> dict[str, Any]:
    """Active concepts at a position, and where else in the input the top ones and the changed ones are."""
    shown = list(dict.fromkeys([*top_concepts(acts, _N_CONCEPTS), *(c for c in changes if 0 <= c < len(acts))]))
    active = spikes(acts)
    return {
        "d_sae": len(acts),
        "n_active": len(active),
        "spikes": active,
        "concepts": [
            {
                "concept": concept,
                "label": labels.get(concept, ""),
                "act": float(acts[concept]),
                "pass": passes.get(concept) if acts[concept] else None,
                "places": places[:, concept].tolist(),
            }
            for concept in shown
        ],
    }


def spikes(acts: torch.Tensor) -> list[tuple[int, float]]:
    """Concepts that are active, and how strongly."""
    active = acts.nonzero().flatten()
    return list(zip(active.tolist(), acts[active].tolist(), strict=True))


def outcomes(before: torch.Tensor, after: torch.Tensor, labels_of: Any) -> list[dict[str, Any]]:
    """The likeliest outcomes before or after a change, likeliest before first."""
    n = min(_N_OUTCOMES, len(before))
    indices = sorted({*before.topk(n).indices.tolist(), *after.topk(n).indices.tolist()}, key=lambda i: -before[i])
    return [
        {"label": label, "before": float(before[i]), "after": float(after[i])}
        for i, label in zip(indices, labels_of(indices), strict=True)
    ]
