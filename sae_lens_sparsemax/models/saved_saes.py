"""Loading a saved SAE of any architecture that SAELens knows, from a folder or the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from sae_lens import SAE
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting, sae_lens_disk_loader
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_sparsemax.files import read_object, reading, reason, refuse_not_finite, tensor_shapes, verify_checksums
from sae_lens_sparsemax.models.shards import is_of_ranks, shards_disk_loader
from sae_lens_sparsemax.settings.checking import convert, hints_of
from sae_lens_sparsemax.settings.sentences import shown, similar_path
from sae_lens_sparsemax.settings.values import expanded

_Saved = TypeVar("_Saved", bound=SAE[Any])

# What commands read of the metadata, which SAELens takes as they are.
_METADATA: dict[str, Any] = {
    **dict.fromkeys(
        ("model_name", "model_class_name", "hook_name", "hook_name_out", "dataset_path", "dataset_split",
         "dataset_config", "text_column", "image_column", "tokens", "training_architecture"),
        str | None,
    ),
    **dict.fromkeys(("context_size", "hook_head_index"), int | None),
    **dict.fromkeys(("prepend_bos", "disable_concat_sequences"), bool | None),
    **dict.fromkeys(("max_norm", "held_out_fraction", "l0", "num_dead_features"), float | None),
    **dict.fromkeys(("model_from_pretrained_kwargs", "training_architecture_details"), dict[str, Any] | None),
    "seqpos_slice": list[int | None] | tuple[int | None, ...] | None,
    "exclude_special_tokens": bool | list[int] | None,
    "sequence_separator_token": str | int | None,
}  # fmt: skip


def require_sae(source: str) -> None:
    """Refuse what is neither the folder of an SAE nor named as one on the hub is, without loading it.

    Raises:
        ValueError: there is no such folder, or no SAE in it.
    """
    folder = expanded(source)
    if folder.is_dir():
        if not (folder / SAE_CFG_FILENAME).is_file():
            inside = (*folder.glob(f"*/{SAE_CFG_FILENAME}"), *folder.glob(f"*/*/{SAE_CFG_FILENAME}"))
            newest = max(inside, key=lambda file: file.stat().st_mtime, default=None)
            near = f"; did you mean {str(newest.parent)!r}?" if newest else "."
            raise ValueError(f"The folder {shown(source)} holds no SAE: it has no {SAE_CFG_FILENAME}{near}")
    elif os.path.isfile(folder):  # noqa: PTH113  also of names that no file can have
        raise ValueError(f"{shown(source)} is a file; an SAE is a folder with {SAE_CFG_FILENAME}.")
    elif ":" not in source:
        near = similar_path(folder, lambda entry: (entry / SAE_CFG_FILENAME).is_file())
        raise ValueError(f"There is no folder {shown(source)}; an SAE on the hub is named user/repository:id{near}")


def load_sae(source: str, device: str = "cpu") -> SAE[Any]:
    """Load an SAE from a folder (inference SAE or training checkpoint), or from ``release_or_repo:id``.

    One of a checkpoint takes activations as the model gives them, as the SAE that is saved in the end does.

    Raises:
        ValueError: there is no SAE, its files are damaged, its architecture is not registered, or its weights are not
            finite.
    """
    require_sae(source)
    if expanded(source).is_dir():
        sae = _read_folder(SAE, source, device)
        _fold_scaling(sae, Path(source).expanduser() / ACTIVATION_SCALER_CFG_FILENAME)
    else:
        release, _, sae_id = source.partition(":")
        sae, failure = None, None
        with reading(source):
            try:
                sae = SAE.from_pretrained(release, sae_id, device=device)
                _check_config(sae.cfg.to_dict())
            except (HfHubHTTPError, EntryNotFoundError) as error:
                failure = error
        if sae is None or failure is not None:
            assert failure is not None
            raise ValueError(f"The SAE {source!r} cannot be had from the hub: {reason(failure)}") from failure
    refuse_not_finite(sae.state_dict(), f"the weights of the SAE {source!r}")
    return sae


def place_of(source: Path | str) -> Path:
    """Where what is made of an SAE lies on this machine: its folder, or `output/RELEASE/ID` for one on the hub."""
    folder, (release, colon, sae_id) = expanded(source), str(source).partition(":")
    return folder if folder.exists() or not colon else Path("output", release, sae_id)


def load_training_sae(folder: str, device: str = "cpu") -> TrainingSAE[Any]:
    """Load an SAE to train on from a checkpoint.

    Raises:
        ValueError: there is none, its files are damaged, or they are those of an SAE that is trained no further.
    """
    require_sae(folder)
    return _read_folder(TrainingSAE, folder, device)


def _read_folder(kind: type[_Saved], source: str, device: str) -> _Saved:
    folder = expanded(source)
    verify_checksums(folder, fewer=True)
    values = read_object(folder / SAE_CFG_FILENAME)
    with reading(folder / SAE_CFG_FILENAME):
        _check_config(handle_config_defaulting(values))
    if not is_of_ranks(folder):
        tensor_shapes(folder / SAE_WEIGHTS_FILENAME)
    with reading(folder):
        converter = shards_disk_loader if is_of_ranks(folder) else sae_lens_disk_loader
        return kind.load_from_disk(folder, device=device, converter=converter)


def _fold_scaling(sae: SAE[Any], file: Path) -> None:
    """Fold into an SAE what scaled its activations while it trained, which a checkpoint has beside it."""
    if sae.cfg.normalize_activations == "none" or not file.is_file():
        return
    with reading(file):
        (scaler := ActivationScaler()).load(file)
        if (factor := scaler.scaling_factor) is not None:
            sae.fold_activation_norm_scaling_factor(factor)
        if (found := scaler.whitening) is not None:
            sae.fold_activation_whitening(found.mean, found.matrix, found.inverse_matrix)


def _check_config(values: dict[str, Any]) -> None:
    """Raise a ValueError unless an SAE's configuration, as it is saved, has values of the types of its fields."""
    if values.get("architecture") not in SAE_CLASS_REGISTRY:
        raise ValueError(f"its architecture {shown(values.get('architecture'))} is not registered")
    hints = hints_of(SAE_CLASS_REGISTRY[values["architecture"]][1])
    metadata = convert(values.get("metadata", {}), dict[str, Any], "metadata")
    for name in (values.keys() & hints.keys()) - {"metadata", "device"}:
        convert(values[name], hints[name], name)
    for name in metadata.keys() & _METADATA.keys():
        convert(metadata[name], _METADATA[name], f"metadata.{name}")
