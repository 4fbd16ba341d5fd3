"""Publishing sparsemax SAEs on the Hugging Face hub, with a card that begins with the import that loading needs.

The upload itself is SAELens's. Before it, training SAEs and checkpoints are folded to inference form, so that every
tool which reads W_enc and W_dec can use what is published; after it come the labels that lie beside an SAE, and our
card in place of SAELens's, whose snippet would not find the architecture.

But: no licence is chosen, and nothing is deleted from the repository.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi
from sae_lens import SAE, upload_saes_to_huggingface
from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME

from sae_lens_sparsemax.display.tables import markdown_table
from sae_lens_sparsemax.explore.labels import OWN, PROPOSED, own_labels, proposed_labels
from sae_lens_sparsemax.models.saved_saes import load_sae
from sae_lens_sparsemax.sae.config import has_score_bias
from sae_lens_sparsemax.sae.inference import SparsemaxSAE
from sae_lens_sparsemax.sae.training import SparsemaxTrainingSAE
from sae_lens_sparsemax.settings.sentences import must_be

__all__ = ["model_card", "upload_saes"]

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

ARCHITECTURE_SECTION = """\
## Architecture

Each token selects its own number of concepts: the support of sparsemax(g · z), where z = u W_enc + b_enc are the
scores of its query u against all concepts and g is the gate scale; with an alpha above 2, the support of α-entmax with
the budget 1/g, and with an infinite one the 1/g best. With activations "scores" a selected concept is active with its
score z, with "probabilities" with g · z − τ (or its power 1/(α − 1)). If queries have unit norm, u = x/‖x‖ and ‖x‖
multiplies the activations. Each further pass selects in the same way by what is unexplained, its queries turned by
W_pass; each refinement weighs what was selected once more; with an activation floor, activations below a threshold of
their concept are dropped in the end. The reconstruction is linear in the activations: f W_dec + b_dec. W_enc and W_dec
are the folded maps of a cross-attention between tokens and concepts, as in
[Improving Sparse Autoencoder with Dynamic Attention](https://arxiv.org/abs/2604.14925), or were learnt separately
where the structure is "mlp".
"""

UNKNOWN = "not recorded"


def upload_saes(
    saes: Mapping[str, SAE[Any] | Path | str],
    repo_id: str,
    revision: str = "main",
    replace_card: bool = False,
) -> str:
    """Upload SAEs, so that `SAE.from_pretrained(repo_id, sae_id)` loads each of them.

    Args:
        saes: from the SAE's id, which is its folder in the repository, to the SAE (trained or folded), or to the
            folder of a saved SAE or of a training checkpoint, with labels.csv and explanations.json if they are there.
        repo_id: "user/name"; made if it does not exist.
        revision: branch to upload to; `SAE.from_pretrained` reads "main".
        replace_card: whether to write over a README.md that is already there.

    Returns:
        The card that goes with these SAEs, whether it was uploaded or one was there already.

    Raises:
        ValueError: an id, the repository's name, or an SAE is not usable; nothing has been uploaded then.
    """
    if not saes:
        raise must_be("saes", "at least one SAE", dict(saes))
    if not isinstance(repo_id, str) or repo_id.count("/") != 1:
        raise must_be("repo_id", "of the form 'user/name'", repo_id)
    further: dict[str, bytes] = {}
    with TemporaryDirectory() as scratch:
        folders: dict[str, SAE[Any] | Path | str] = {}
        described: dict[str, SAE[Any]] = {}
        for number, (sae_id, source) in enumerate(saes.items()):
            _check_id(sae_id)
            folders[sae_id] = folder = Path(scratch) / str(number)
            described[sae_id] = _write_inference_form(sae_id, source, folder)
            if not isinstance(source, SAE):
                for read in (own_labels, proposed_labels):
                    read(Path(source))  # what is damaged is refused
                beside = (Path(source) / name for name in (OWN, PROPOSED))
                further |= {f"{sae_id}/{path.name}": path.read_bytes() for path in beside if path.is_file()}
        card = model_card(repo_id, described)
        upload_saes_to_huggingface(folders, repo_id, revision, add_default_readme=False)
    api = HfApi()
    if replace_card or not api.file_exists(repo_id, "README.md", revision=revision):
        further["README.md"] = card.encode()
    for path, content in further.items():
        message = "Describe the SAEs and how to load them" if path == "README.md" else f"Upload {path}"
        api.upload_file(
            path_or_fileobj=content, path_in_repo=path, repo_id=repo_id, revision=revision, commit_message=message
        )
    return card


def _write_inference_form(sae_id: str, source: SAE[Any] | Path | str, folder: Path) -> SAE[Any]:
    """Fill a folder with what is uploaded; returns an SAE that the card can describe."""
    if isinstance(source, (str, Path)):
        sae = _load_folder(sae_id, Path(source))
        sae.save_model(folder)
        for name in (SPARSITY_FILENAME, RUNNER_CFG_FILENAME):
            if (Path(source) / name).exists():
                shutil.copy(Path(source) / name, folder / name)
        return sae
    if isinstance(source, SparsemaxTrainingSAE):
        _check_folded(sae_id, source)
        source.save_inference_model(folder)
    elif isinstance(source, SparsemaxSAE):
        _check_folded(sae_id, source)
        source.save_model(folder)
    else:
        raise ValueError(
            f"SAE {sae_id!r} must be a sparsemax SAE or the folder of one, got a {type(source).__name__}; SAEs of "
            "other architectures are uploaded with SAELens"
        )
    return source


def _load_folder(sae_id: str, folder: Path) -> SparsemaxSAE:
    for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
        if not (folder / name).is_file():
            raise ValueError(f"SAE {sae_id!r}: there is no {name} in {folder}")
    sae = load_sae(str(folder))
    if not isinstance(sae, SparsemaxSAE):
        raise ValueError(f"SAE {sae_id!r} in {folder} is a {type(sae).__name__}, not a sparsemax SAE")
    _check_folded(sae_id, sae)
    return sae


def _check_folded(sae_id: str, sae: SAE[Any]) -> None:
    needed = sae.cfg.normalize_activations
    if needed in ("expected_average_only_in", "covariance_whitening"):
        raise ValueError(
            f"SAE {sae_id!r} still expects activations normalised by {needed!r}, and the statistics are not known "
            "here; finish its training, or give the folder of its checkpoint"
        )


def _check_id(sae_id: str) -> None:
    path = PurePosixPath(sae_id) if isinstance(sae_id, str) else PurePosixPath()
    # One folder has one id: the hub takes "a/" for "a", and would keep the last of the two alone. It loads no "a:b".
    is_plain = str(path) == sae_id and not path.is_absolute() and not {".", ".."} & {*path.parts, sae_id}
    if not is_plain or "\\" in sae_id or ":" in sae_id:
        raise must_be("an SAE's id", "a folder in the repository, such as 'layer_6/l0_32'", sae_id)


def model_card(repo_id: str, saes: Mapping[str, SAE[Any]]) -> str:
    """The text of README.md for a repository that holds these SAEs.

    Args:
        repo_id: "user/name" of the repository.
        saes: from id to sparsemax SAE, trained or folded. What is not in their metadata is called not recorded.

    Raises:
        ValueError: there are no SAEs.
    """
    if not saes:
        raise must_be("saes", "at least one SAE", dict(saes))
    parts = [
        FRONT_MATTER,
        LOADING.format(repo_id=repo_id, sae_id=next(iter(saes))),
        f"# Sparsemax SAEs: {repo_id}\n",
        f"## SAEs\n\n{_table(_settings, saes)}\n",
        f"## Training\n\n{_table(_training, saes)}\n",
        ARCHITECTURE_SECTION,
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
        "unit-norm query": cfg.unit_norm_query,
        "gate": cfg.gate,
        "alpha": f"{cfg.alpha:g}",
        "gate scale g": f"{cfg.gate_scale:.6g}",
        "passes": cfg.passes,
        "refinements": cfg.refinements,
        "activation floor": f"{cfg.activation_floor:g}",
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
        "encoder bias": _has_encoder_bias(details),
        "target L0": "none" if target is None else str(target),
        "floor of": details.get("floor_of"),
        "loss weighting": details.get("loss_weighting"),
        "dtype": sae.cfg.dtype,
        "SAELens": metadata.sae_lens_training_version,
    }


def _has_encoder_bias(details: Mapping[str, Any]) -> bool | None:
    """Whether scores have a bias, or None where nothing is known; shared concepts had none before there was a field."""
    if "structure" not in details:
        return None
    return has_score_bias(details["structure"], details.get("encoder_bias", False))


def _table(describe: Callable[[SAE[Any]], dict[str, Any]], saes: Mapping[str, SAE[Any]]) -> str:
    rows = {sae_id: describe(sae) for sae_id, sae in saes.items()}
    cells = [[sae_id, *(None if value == "" else value for value in row.values())] for sae_id, row in rows.items()]
    return markdown_table(["id", *next(iter(rows.values()))], cells, missing=UNKNOWN)
