"""The card of a repository of sparsemax SAEs: how to load them, what they compute, how each was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_lens import SAE

from sae_lens_sparsemax.display.tables import markdown_table

FRONT_MATTER = """\
---
library_name: saelens
tags:
- sparse-autoencoder
- mechanistic-interpretability
- sae
- sparsemax
---
"""

LOADING = """\
```python
import sae_lens_sparsemax  # makes the architecture known to SAELens: pip install sae-lens-sparsemax
from sae_lens import SAE

sae = SAE.from_pretrained("{repo_id}", "{sae_id}")
feature_acts = sae.encode(activations)  # (..., d_in) -> (..., d_sae)
reconstruction = sae.decode(feature_acts)
```
"""

ARCHITECTURE = """\
## Architecture

Each token selects its own number of concepts: the support of sparsemax(g · z), where z = u W_enc + b_enc are the
scores of its query u against all concepts and g is the gate scale. With activations "scores" a selected concept is
active with its score z, with "probabilities" with g · z − τ. If queries have unit norm, u = x/‖x‖ and ‖x‖ multiplies
the activations. The reconstruction is linear in the activations: f W_dec + b_dec. W_enc and W_dec are the folded maps
of a cross-attention between tokens and concepts, as in
[Improving Sparse Autoencoder with Dynamic Attention](https://arxiv.org/abs/2604.14925), or were learnt separately
where the structure is "mlp".
"""

UNKNOWN = "not recorded"


def model_card(repo_id: str, saes: Mapping[str, SAE[Any]]) -> str:
    """The text of README.md for a repository that holds these SAEs.

    Args:
        repo_id: "user/name" of the repository.
        saes: from id to sparsemax SAE, trained or folded. What is not in their metadata is called not recorded.

    Raises:
        ValueError: there are no SAEs.
    """
    if not saes:
        raise ValueError("a model card needs at least one SAE")
    rows = {sae_id: _settings(sae) for sae_id, sae in saes.items()}
    trained = {sae_id: _training(sae) for sae_id, sae in saes.items()}
    parts = [
        FRONT_MATTER,
        LOADING.format(repo_id=repo_id, sae_id=next(iter(saes))),
        f"# Sparsemax SAEs: {repo_id}\n",
        "## SAEs\n\n" + _table(rows),
        "## Training\n\n" + _table(trained),
        ARCHITECTURE,
    ]
    return "\n".join(parts)


def _settings(sae: SAE[Any]) -> dict[str, Any]:
    cfg, metadata = sae.cfg, sae.cfg.metadata
    dead = metadata.num_dead_features
    return {
        "model": metadata.model_name,
        "hook": metadata.hook_name,
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "activations": cfg.activations,
        "unit-norm query": "yes" if cfg.unit_norm_query else "no",
        "gate": cfg.gate,
        "gate scale g": f"{cfg.gate_scale:.6g}",
        "mean L0": None if metadata.l0 is None else f"{metadata.l0:.1f}",
        "dead concepts": None if dead is None else f"{dead:.0f}",
    }


def _training(sae: SAE[Any]) -> dict[str, Any]:
    metadata = sae.cfg.metadata
    details = metadata.training_architecture_details or {}
    target = details.get("target_l0", UNKNOWN)
    return {
        "data set": metadata.dataset_path,
        "context": metadata.context_size,
        "structure": details.get("structure"),
        "target L0": "none" if target is None else str(target),
        "loss weighting": details.get("loss_weighting"),
        "dtype": sae.cfg.dtype,
        "SAELens": metadata.sae_lens_training_version,
    }


def _table(rows: Mapping[str, dict[str, Any]]) -> str:
    """A Markdown table with one row per SAE."""
    header = ["id", *next(iter(rows.values()))]
    cells = ([sae_id, *(None if value == "" else value for value in row.values())] for sae_id, row in rows.items())
    return markdown_table(header, cells, missing=UNKNOWN) + "\n"
