"""From saved SAEs to a folder of pages."""

import dataclasses
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_sparsemax.explore.cofiring import cofiring_concepts
from sae_lens_sparsemax.explore.explored import Explored, decoder_probe
from sae_lens_sparsemax.explore.gather import gather
from sae_lens_sparsemax.explore.interest import concept_map, interest
from sae_lens_sparsemax.explore.labels import labels_of, show_labels
from sae_lens_sparsemax.explore.names import guess_names, listed_words, usable_words
from sae_lens_sparsemax.explore.pages.concepts import SAEReport
from sae_lens_sparsemax.explore.pages.folder import check_folder, write_folder
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.explore.streams import ImageStream, TextStream
from sae_lens_sparsemax.explore.weights import nearest_concepts, token_logits, unembedding
from sae_lens_sparsemax.files import atomic_directory, only_writer
from sae_lens_sparsemax.models.language_models import load_each_once, load_language_model
from sae_lens_sparsemax.models.saved_saes import load_sae, require_sae
from sae_lens_sparsemax.models.vision_at_hook import VISION_MODEL_CLASS
from sae_lens_sparsemax.processes.failures import one_failure_ends_all
from sae_lens_sparsemax.processes.together import gathered, is_first, join, own_device, own_part
from sae_lens_sparsemax.settings.sentences import must_be, shown
from sae_lens_sparsemax.settings.values import expanded

logger = logging.getLogger(__name__)
DEFAULT_EXAMPLES = 12
_NEIGHBOURS = 10
_LOGITS = 10


def explore(
    paths: Sequence[str],
    output: Path | str,
    settings: ExploreSettings | None = None,
    *,
    names: Sequence[str] | None = None,
    progress: bool = True,
) -> Path:
    """Gather what the concepts of SAEs fire on, and write it as a folder of static pages.

    The processes that torchrun started share the data; the first one writes what one alone would.

    Args:
        paths: Folders of SAEs of any SAELens architecture, or `release_or_repo:id`; several, which must have been
            trained on the same model, are shown beside each other.
        output: The folder to write. It appears when it is complete; an earlier one is replaced.
        settings: What to explore them on; by default what their metadata say.
        names: What to call the SAEs; by default the last parts of their paths.
        progress: Whether to show progress bars.

    Returns:
        The page to open.

    Raises:
        ValueError: An SAE, its model or its data cannot be loaded or do not fit; or `output` holds something else,
            cannot be written to, or is being written by another process.
    """
    join()
    with one_failure_ends_all("with the same command"), ExitStack() as stack:
        if names is not None and len(names) != len(paths):
            raise must_be("names", f"as many as the {len(paths)} SAEs", list(names))
        for path in paths:
            require_sae(path)
        settings, output = settings or ExploreSettings(), expanded(output)
        here = dataclasses.replace(settings, device=own_device(settings.device))
        words = None if settings.words is None else listed_words(settings.words)
        # Files are gathered beside the folder, which is replaced as a whole.
        if is_first():
            stack.enter_context(only_writer(output.parent, "--output_path", f".{output.name}.lock"))
            check_folder(output)
            for path in paths:
                labels_of(path)  # damaged ones are refused now, not when examples have been gathered
        gathering = output.parent / f".{output.name}.gathering"
        reports, load = [], load_each_once()
        for number, (path, name) in enumerate(zip(paths, names or short_names(paths), strict=True)):
            logger.info("Exploring %s.", path)
            report = _report(path, name, here, gathering / f"{number}.safetensors", words, progress, load)
            if report is not None:
                reports.append(report)
                _check_same_data(reports[0], report)
        if is_first():
            with atomic_directory(output) as folder:
                write_folder(folder, reports, settings, progress=progress)
                for number, path in enumerate(paths):
                    show_labels(Explored(folder, number), path)
            shutil.rmtree(gathering, ignore_errors=True)
    return output / "index.html"


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, or as many more as tell them apart."""
    parts = [expanded(path.partition(":")[2] or path).resolve().parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-n:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({number})" for number, part in enumerate(parts)]


def open_stream(
    sae: SAE[Any], settings: ExploreSettings, load: Callable[..., Any] = load_language_model
) -> ImageStream | TextStream:
    """The images or the text that an SAE is explored on, whichever its model sees."""
    model_class = settings.model_class_name or sae.cfg.metadata.model_class_name
    return ImageStream(sae, settings) if model_class == VISION_MODEL_CLASS else TextStream(sae, settings, load)


def _report(
    path: str,
    name: str,
    settings: ExploreSettings,
    state_file: Path,
    words: list[str] | None,
    progress: bool,
    load: Callable[..., Any],
) -> SAEReport | None:
    sae = load_sae(path, settings.device)
    stream = open_stream(sae, settings, load)
    words = None if words is None else usable_words(stream, words)  # before anything is gathered
    statistics = gather(
        sae,
        stream,
        n_examples=settings.examples or DEFAULT_EXAMPLES,
        n_showcase=settings.showcase,
        n_drawn=settings.drawn_examples,
        state_file=state_file,
        progress=progress,
        part=own_part(),
        share=gathered,
    )
    if statistics is None:  # of a process that only reads
        return None
    rows = sae.W_dec.detach().float()
    logits = None
    if isinstance(stream, TextStream):
        matrix = unembedding(stream.model, stream.on["hook_name"], sae.cfg.d_in)
        logits = None if matrix is None else token_logits(rows, matrix.to(rows.device), _LOGITS, progress=progress)
    names = None
    if words is not None and isinstance(stream, ImageStream):
        names = guess_names(stream, statistics.examples, words, progress=progress)
    norms = rows.norm(dim=-1).cpu()
    promise = interest(statistics, norms)
    meta = sae.cfg.metadata
    return SAEReport(
        name=name,
        architecture=meta.training_architecture or sae.cfg.architecture(),
        stream=stream,
        statistics=statistics,
        norms=norms,
        probe=decoder_probe(rows),
        near=nearest_concepts(rows, _NEIGHBOURS, progress=progress),
        cofiring=cofiring_concepts(statistics.cofiring, _NEIGHBOURS, progress=progress),
        interest=promise,
        map=concept_map(rows, promise),
        logits=logits,
        names=names,
    )


def _check_same_data(first: SAEReport, other: SAEReport) -> None:
    """Examples stand beside each other, so they must be of the same samples and tokens."""
    one, two = (report.stream.identity()["samples"] for report in (first, other))
    for key in (*one, *two):
        if one.get(key) != two.get(key):
            raise ValueError(
                f"{first.name!r} and {other.name!r} cannot be compared: their {key} is {shown(one.get(key))} and "
                f"{shown(two.get(key))}; options such as --dataset_path set it for both."
            )
    if not torch.equal(first.statistics.showcase.ids, other.statistics.showcase.ids):
        raise ValueError(f"{first.name!r} and {other.name!r} cannot be compared: they saw different examples.")
