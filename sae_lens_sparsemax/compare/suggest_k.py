"""From the mean L0 of a sparsemax SAE to the TopK and BatchTopK configs that are compared with it."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from sae_lens.saes.sae import TrainingSAEConfig

from sae_lens_sparsemax.files import atomic_write_text

MATCHED_ARCHITECTURES = ("topk", "batchtopk")


def matched_settings(settings: Mapping[str, Any], mean_l0: float) -> dict[str, dict[str, Any]]:
    """
    Training settings for TopK and BatchTopK at the L0 that a sparsemax SAE chose for itself.

    Everything outside `sae` stays as it is, so that only the architecture differs; outputs go to folders of their
    own. Of `sae`, the fields that all architectures share are kept. TopK needs a whole k, the nearest; BatchTopK
    takes the mean as it is.

    Args:
        settings: Settings of the sparsemax training, with its SAE under `sae`.
        mean_l0: Mean active concepts per token of the trained SAE.

    Returns:
        Settings by architecture.

    Raises:
        ValueError: If there is no `sae`, or the L0 is not between 1 and d_sae.
    """
    sae = settings.get("sae")
    if not isinstance(sae, Mapping) or "d_sae" not in sae:
        raise ValueError("the settings have no `sae` with a d_sae, so there is no SAE to match")
    if not 1 <= round(mean_l0) <= sae["d_sae"]:
        raise ValueError(f"the mean L0 must lie between 1 and d_sae = {sae['d_sae']}, got {mean_l0}")
    shared = {f.name for f in fields(TrainingSAEConfig)} - {"metadata"}
    matched = {}
    for architecture in MATCHED_ARCHITECTURES:
        k = round(mean_l0) if architecture == "topk" else round(float(mean_l0), 2)
        kept = {key: value for key, value in sae.items() if key in shared}
        sae_settings = {"architecture": architecture, **kept, "k": k}
        # Finds settings that the other architecture does not take before anybody trains with them. The width may be
        # left to the model.
        TrainingSAEConfig.from_dict({"d_in": 1, **sae_settings})
        matched[architecture] = {**settings, "sae": sae_settings}
        for key in ("output_path", "checkpoint_path"):
            if settings.get(key):
                matched[architecture][key] = f"{settings[key]}_{architecture}"
    return matched


def write_matched_settings(settings: Mapping[str, Any], mean_l0: float, folder: str | Path) -> list[Path]:
    """Write `matched_settings` as `topk.yaml` and `batchtopk.yaml` and return the two paths."""
    paths = []
    for architecture, matched in matched_settings(settings, mean_l0).items():
        path = Path(folder) / f"{architecture}.yaml"
        note = f"# k is the mean L0 ({mean_l0:.4g}) of the sparsemax SAE that this is compared with.\n"
        atomic_write_text(path, note + yaml.safe_dump(matched, sort_keys=False))
        paths.append(path)
    return paths
