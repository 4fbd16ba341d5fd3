"""Metric groups that are computed once: each is saved when it is finished and kept until its settings change."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_sparsemax.files import digest_of, read_object, save_json, sealed
from sae_lens_sparsemax.processes.together import Turns, gathered, is_first
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

    Of several processes each takes the next group when it is free, and all return the results of all.

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
    # What the first process finds, for another may see files of groups that are finished meanwhile.
    plan = gathered([_plan(group, folder, digest, only, overwrite) for group in groups], patiently=True)[0]
    todo, turns = list(zip(groups, plan, strict=True)), Turns()
    own: dict[str, Any] = {}
    failures: dict[str, ValueError] = {}
    for group, (key, is_wanted, kept) in (bar := tqdm(todo, desc="Metric groups", unit="group", disable=not progress)):
        bar.set_postfix_str(group.name)
        if kept is not None:
            if is_wanted and is_first():
                say(f"{group.name}: kept, it was finished earlier with the same settings ({_path(folder, group)})")
        elif is_wanted and turns.is_mine():
            group.opens()
            try:
                measured = group.compute()
            except ValueError as reason:
                if not isinstance(reason, NotMeasured):
                    failures[group.name] = reason
                say(f"{group.name}: not measured, {reason}")
                own[group.name] = {"not_measured": str(reason)}
                continue
            saved = {"group": group.name, "fingerprint": key, "settings": group.settings, "result": measured}
            save_json(sealed(saved), _path(folder, group))
            own[group.name] = read_object(_path(folder, group))["result"]
    parts = gathered((own, {name: str(reason) for name, reason in failures.items()}), patiently=True)
    found = {group.name: kept for group, (_, _, kept) in todo if kept is not None}
    for part, _ in parts:
        found |= part
    said = {name: reason for _, part in parts for name, reason in part.items()}
    wanted = [group.name for group, (_, is_wanted, _) in todo if is_wanted]
    if said and all("not_measured" in found[name] for name in wanted):
        first = next(name for name in names if name in said)
        raise failures.get(first, ValueError(said[first]))
    return {name: found[name] for name in names if name in found}


def _plan(group: MetricGroup, folder: Path, digest: str, only: Sequence[str], overwrite: bool) -> tuple[str, bool, Any]:
    """The fingerprint of a group's settings, whether it was asked for, and its result if that is to be kept."""
    key = digest_of([digest, group.settings]).hexdigest()
    is_wanted = not only or group.name in only
    return key, is_wanted, None if overwrite and is_wanted else _finished(_path(folder, group), key, group.name)


def _path(folder: Path, group: MetricGroup) -> Path:
    return folder / f"{group.name.replace('/', '-')}.json"


def sae_digest(sae: SAE[Any]) -> str:
    """A hash of an SAE's architecture, settings and weights, equal for equal SAEs."""
    settings = {key: value for key, value in sae.cfg.to_dict().items() if key not in ("metadata", "device")}
    digest = digest_of(settings)
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
