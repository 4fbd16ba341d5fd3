"""One suite on one saved SAE: measure what is not finished, then write results, report and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from sae_lens import SAE

from sae_lens_sparsemax.evaluation.settings import (
    TextSuiteSettings,
    VisionSuiteSettings,
    text_settings,
    trained_on,
    vision_settings,
)
from sae_lens_sparsemax.evaluation.suite.groups import run_groups, sae_digest
from sae_lens_sparsemax.evaluation.suite.pictures import write_pictures
from sae_lens_sparsemax.evaluation.suite.report import REPORT_FILENAME, write_report
from sae_lens_sparsemax.evaluation.suite.text import text_groups
from sae_lens_sparsemax.evaluation.suite.vision import vision_groups
from sae_lens_sparsemax.files import require_writable, save_json
from sae_lens_sparsemax.models.language_models import load_language_model
from sae_lens_sparsemax.models.saved_saes import load_sae, place_of
from sae_lens_sparsemax.models.vision_at_hook import reads_images
from sae_lens_sparsemax.processes.failures import one_failure_ends_all
from sae_lens_sparsemax.processes.together import is_first, join, own_device
from sae_lens_sparsemax.settings.checking import build
from sae_lens_sparsemax.settings.sentences import must_be_one_of

Suite = Literal["text", "vision"]


class SuiteResult(NamedTuple):
    """What a suite leaves."""

    folder: Path
    """Where everything is."""
    report: Path
    """The Markdown report; pictures lie beside it."""
    results: dict[str, Any]
    """`sae`, `suite`, `settings` and the result of every group by name, as in `results.json`."""


def suite_of(sae: SAE[Any]) -> Suite:
    """The suite for the kind of model that the SAE's metadata name; text if they name none."""
    return "vision" if reads_images(sae) else "text"


def evaluate_suite(
    source: str,
    suite: Suite | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    sae: SAE[Any] | None = None,
    load: Callable[..., Any] = load_language_model,
    groups: Sequence[str] = (),
    output: str | Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: bool = True,
) -> SuiteResult:
    """Measure a saved SAE with a suite; groups finished earlier with the same settings are kept.

    The processes that torchrun started share the groups; the first one writes the report.

    Args:
        source: Folder of an SAE or checkpoint, or `user/repository:id` on the hub.
        suite: `"text"` or `"vision"`; None for the one that fits the SAE's metadata.
        settings: Fields of `TextSuiteSettings` or `VisionSuiteSettings`, as plain data.
        sae: The SAE of `source`, where it is loaded already.
        load: What loads a language model; see `load_each_once`.
        groups: Metric groups to measure; empty for all.
        output: Folder for the results; by default `evaluation/<suite>` in the SAE's folder.
        overwrite: Measure finished groups again.
        say: Told which groups were kept, and which could not be measured and why.
        progress: Whether to show progress bars.

    Raises:
        ValueError: SAE, model, hook or data cannot be found or do not fit; the message names what was given.
    """
    settings = dict(settings or {})
    join()
    with one_failure_ends_all("with the same command"):
        if suite is not None and suite not in get_args(Suite):
            raise must_be_one_of("suite", suite, get_args(Suite))
        if suite is not None:
            build(TextSuiteSettings if suite == "text" else VisionSuiteSettings, settings)
        settings["device"] = own_device(str(settings.get("device") or "cpu"))
        sae = sae if sae is not None else load_sae(source, settings["device"])
        suite = suite or suite_of(sae)
        folder = Path(output) if output is not None else default_folder(source, suite)
        require_writable(folder, "--output_path")
        if suite == "text":
            complete: Any = text_settings(settings, sae)
            todo = text_groups(sae, complete, progress, load)
        else:
            complete = vision_settings(settings, sae)
            todo = vision_groups(sae, complete, progress)
        if trained_on(complete, sae) and is_first():
            what = "texts" if suite == "text" else "images"
            say(f"Note: there are {what} that the SAE was trained on; figures to report need others.")
        digest = sae_digest(sae)
        measured = run_groups(todo, folder, digest, only=groups, overwrite=overwrite, say=say, progress=progress)
        results = {
            "sae": {
                "source": source,
                "architecture": sae.cfg.architecture(),
                "d_in": sae.cfg.d_in,
                "d_sae": sae.cfg.d_sae,
            },
            "suite": suite,
            "settings": dataclasses.asdict(complete),
            "groups": measured,
        }
        if is_first():
            save_json(results, folder / "results.json")
            write_report(results, write_pictures(suite, measured, folder), folder)
    return SuiteResult(folder, folder / REPORT_FILENAME, results)


def default_folder(source: str, suite: str) -> Path:
    """Where the results of a suite go unless something else is said."""
    return place_of(source) / "evaluation" / suite
