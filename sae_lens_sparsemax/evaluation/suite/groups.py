"""Metric groups that are computed once: each is saved when it is finished and kept until its settings change."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.files import read_object, save_json, sealed
from sae_lens_sparsemax.settings.sentences import must_be_one_of

logger = logging.getLogger(__name__)


class NotMeasured(ValueError):
    """A group cannot be measured with what was given, which is no mistake; the message says what is missing."""


class MetricGroup(NamedTuple):
    """Some measures that are computed together."""

    name: str
    """Unique in its suite; also the name of its file."""
    settings: Mapping[str, Any]
    """Everything the result depends on, besides the SAE, as plain data."""
    compute: Callable[[], Mapping[str, Any]]
    """Returns plain data or dataclasses; raises `NotMeasured` if something it needs was not given."""
    opens: Callable[[], object] = bool
    """Loads what other groups need too, such as the model: an error there ends the suite."""


def run_groups(
    groups: Sequence[MetricGroup],
    folder: Path,
    digest: str,
    *,
    only: Sequence[str] = (),
    overwrite: bool = False,
    say: Callable[[str], None],
    progress: bool = True,
) -> dict[str, Any]:
    """Compute the groups that are not finished and return all results by name.

    Args:
        groups: What to measure.
        folder: Where each group is saved as `<name>.json`.
        digest: Identifies the SAE; results of another one are computed again.
        only: Names of the groups to measure; empty for all. Others are in the results if they are finished.
        overwrite: Compute finished groups again.
        say: Told about groups that were kept, and about those that could not be measured.
        progress: Whether to show a progress bar over groups.

    Returns:
        Plain data by group; a group that could not be measured is `{"not_measured": reason}`.

    Raises:
        ValueError: If `only` has a name that is no group, if what groups share cannot be opened, or if a group fails
            and none of those asked for could be measured.
    """
    names = [group.name for group in groups]
    for name in only:
        if name not in names:
            raise must_be_one_of("groups", name, names)
    results: dict[str, Any] = {}
    failures: list[ValueError] = []
    is_any_measured = False
    for group in (bar := tqdm(groups, desc="Metric groups", unit="group", disable=not progress)):
        bar.set_postfix_str(group.name)
        path = folder / f"{group.name.replace('/', '-')}.json"
        key = hashlib.sha256(json.dumps([digest, group.settings], sort_keys=True, default=str).encode()).hexdigest()
        wanted = not only or group.name in only
        kept = None if overwrite and wanted else _finished(path, key, group.name)
        if kept is None and not wanted:
            continue
        if kept is not None:
            is_any_measured |= wanted
            if wanted:
                say(f"{group.name}: kept, it was finished earlier with the same settings ({path})")
            results[group.name] = kept
            continue
        group.opens()
        try:
            measured = group.compute()
        except ValueError as reason:
            if not isinstance(reason, NotMeasured):
                failures.append(reason)
            say(f"{group.name}: not measured, {reason}")
            results[group.name] = {"not_measured": str(reason)}
            continue
        is_any_measured = True
        kept = {"group": group.name, "fingerprint": key, "settings": group.settings, "result": measured}
        save_json(sealed(kept), path)
        results[group.name] = read_object(path)["result"]
    if failures and not is_any_measured:
        raise failures[0]
    return results


def sae_digest(sae: SAE[Any]) -> str:
    """A hash of an SAE's architecture, settings and weights, equal for equal SAEs."""
    settings = {key: value for key, value in sae.cfg.to_dict().items() if key not in ("metadata", "device")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _finished(path: Path, key: str, name: str) -> Any:
    """The result in a group's file; None if there is none, or one of other settings."""
    if not path.is_file():
        return None
    try:
        saved = read_object(path)
    except ValueError as error:
        logger.warning("Measuring again: %s", error)
        return None
    kept_by_version_0_1 = {"fingerprint", "settings", "result"}
    is_ours = saved.keys() - {"group"} == kept_by_version_0_1 and saved.get("group", name) == name
    return saved["result"] if is_ours and saved["fingerprint"] == key else None
