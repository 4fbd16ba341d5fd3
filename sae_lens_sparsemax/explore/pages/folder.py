"""Writing the whole folder: what fits into it, pictures or contexts, then every SAE's concepts and examples."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from sae_lens_sparsemax.explore import failures
from sae_lens_sparsemax.explore.pages import shown_samples
from sae_lens_sparsemax.explore.pages.concepts import (
    SHARD,
    SAEReport,
    class_labels,
    write_concepts,
    write_map,
    write_table,
)
from sae_lens_sparsemax.explore.pages.scripts import Fit, fit_examples, rounded, write_script
from sae_lens_sparsemax.explore.pages.searched import write_active, write_found
from sae_lens_sparsemax.explore.pages.site import MANIFEST, PLOTLY, summary, write_pages, write_showcase
from sae_lens_sparsemax.explore.settings import ExploreSettings
from sae_lens_sparsemax.explore.streams import ImageStream, TextStream
from sae_lens_sparsemax.files import refuse_to_replace
from sae_lens_sparsemax.settings.sentences import must_be

logger = logging.getLogger(__name__)
_FAILURES_SHOWN = 20
_DEAD_SHOWN = 500
_TITLE_TOKENS = 16
_OUTLIERS_SHOWN = 8
# With fewer examples than this, smaller pictures are the lesser loss.
_ENOUGH_EXAMPLES = 6


def check_folder(output: Path) -> None:
    """Refuse to replace a folder that holds anything but pages of an explorer.

    Raises:
        ValueError: It does, or is a file.
    """
    if output.is_file():
        raise must_be("output_path", "a folder", str(output))
    refuse_to_replace(output, lambda folder: (folder / "data" / f"{MANIFEST}.js").is_file())


def write_folder(folder: Path, reports: list[SAEReport], settings: ExploreSettings, *, progress: bool) -> None:
    """Write the pages and all data of SAEs explored on the same samples into an empty folder."""
    stream, showcase = reports[0].stream, reports[0].statistics.showcase.ids
    write_pages(folder)
    fits, side = _fit(folder, reports, settings, showcase)
    samples = torch.cat([fit.samples for fit in fits]).unique()
    tokens: dict[int, torch.Tensor] = {}
    if isinstance(stream, ImageStream):
        shown_samples.write_pictures(folder, stream, samples, side, progress=progress)
    else:
        tokens = shown_samples.write_contexts(folder, stream, samples, progress=progress)
    context_shards = sorted({number // shown_samples.CONTEXT_SHARD for number in tokens})
    summaries = []
    for number, (report, fit) in enumerate(zip(reports, fits, strict=True)):
        labels, unclear = _labels(report, tokens)
        write_table(folder, number, report, labels, thumbnails=stream.kind == "image")
        write_found(folder, number, report.statistics.examples, fit.n_examples[0])
        if stream.kind == "text":
            kinds = report.statistics.all_examples
            write_active(folder, number, kinds, fit.n_examples, context_shards, progress=progress)
        write_map(folder, number, report.map)
        write_concepts(folder, number, report, fit.n_examples, progress=progress)
        write_showcase(folder, number, report.statistics)
        write_script(folder, f"{number}/failures", _failures(report, unclear))
        outliers = _outliers(report)
        known = summary(report.name, report.architecture, report.stream.describe(), report.statistics)
        told = [rounded(cosine) for cosine in report.probe.tolist()]
        summaries.append(known | {"id": _identity(report), "probe": told, "outliers": outliers})
    grid = (stream.patch_grid, stream.n_prefix_tokens) if isinstance(stream, ImageStream) else ((0, 0), 0)
    # What all pages know.
    site = {
        "kind": stream.kind,
        "tokens": stream.n_tokens,
        "classes": stream.class_names,
        "grid": grid[0],
        "prefix": grid[1],
        "shard": SHARD,
        "contextShard": shown_samples.CONTEXT_SHARD,
        # The files of contexts; pages of earlier versions have no such list, and are searched by peaks alone.
        "contextShards": context_shards,
        "showcase": showcase.tolist(),
        "titles": _titles(stream, tokens, showcase),
        "saes": summaries,
    }
    write_script(folder, MANIFEST, site)


def _identity(report: SAEReport) -> str:
    """The same for the same decoder, wherever its pages lie: readers' notes are kept under it."""
    digest = hashlib.sha256(report.norms.numpy().tobytes())
    digest.update(report.near.concept.numpy().tobytes())
    return digest.hexdigest()[:16]


def _outliers(report: SAEReport) -> dict[str, Any] | None:
    """How many tokens were left out for their huge activations alone, and the most frequent of them."""
    statistics, stream = report.statistics, report.stream
    if isinstance(stream, ImageStream) or not statistics.n_outliers:
        return None
    ids, counts = statistics.outliers.unique(return_counts=True)
    best = counts.argsort(descending=True, stable=True)[:_OUTLIERS_SHOWN]
    tokens = [[stream.at_hook.token_text(int(ids[k])), int(counts[k])] for k in best.tolist()]
    return {"n": statistics.n_outliers, "tokens": tokens}


def _titles(stream: ImageStream | TextStream, tokens: dict[int, torch.Tensor], showcase: torch.Tensor) -> list[str]:
    """How the contexts that have a page begin; images have none."""
    if isinstance(stream, ImageStream):
        return []
    return ["".join(stream.at_hook.token_texts(tokens[n][:_TITLE_TOKENS].tolist())) for n in showcase.tolist()]


def _fit(
    folder: Path, reports: list[SAEReport], settings: ExploreSettings, showcase: torch.Tensor
) -> tuple[list[Fit], int]:
    """The examples shown of each SAE, and the side of pictures, so that the folder keeps to its size."""
    stream = reports[0].stream
    n_bytes = settings.megabytes * 1_000_000 - (folder / "assets" / PLOTLY).stat().st_size
    wanted = reports[0].statistics.examples.sample.shape[1]
    fits, side = [], 0
    for side in shown_samples.SIDES:
        if isinstance(stream, TextStream):
            each = stream.n_tokens * shown_samples.BYTES_PER_TOKEN
        else:
            each = shown_samples.bytes_per_image(stream, side, torch.arange(stream.n_samples))
        searched = stream.kind == "text"
        fits = [
            fit_examples(report.statistics.all_examples, each, n_bytes, showcase, searched=searched)
            for report in reports
        ]
        if min(fit.n_examples[0] for fit in fits) >= min(wanted, _ENOUGH_EXAMPLES):
            break
    if (shown := min(fit.n_examples[0] for fit in fits)) < wanted:
        logger.warning(
            "%d examples of a concept are shown instead of %d, to keep to %d MB.", shown, wanted, settings.megabytes
        )
    return fits, side


def _labels(report: SAEReport, tokens: dict[int, torch.Tensor]) -> tuple[list[str], dict[str, Any]]:
    """Labels of concepts, and which concepts have no clear pattern."""
    statistics, stream = report.statistics, report.stream
    if isinstance(stream, TextStream):
        peaks = shown_samples.peak_tokens(statistics.examples, tokens)
        unclear, distinct = failures.unclear_by_tokens(statistics, peaks, _FAILURES_SHOWN)
        note = "Whose strongest examples peak on the most different tokens: either a pattern of meaning, or none."
        return shown_samples.token_labels(peaks, stream), {
            "unclear": unclear,
            "unclear_note": note,
            "distinct": {c: int(distinct[c]) for c in unclear},
        }
    note = "Spread most evenly over the classes, of those active on at least ten images."
    if statistics.classes is None:
        guesses = report.names or [None] * statistics.d_sae
        labels = [f"perhaps {guess.name}" if guess else "" for guess in guesses]
        return labels, {"unclear": [], "unclear_note": "The images have no classes to judge by."}
    unclear = failures.unclear_by_entropy(statistics, _FAILURES_SHOWN)
    return class_labels(statistics, stream.class_names), {"unclear": unclear, "unclear_note": note}


def _failures(report: SAEReport, unclear: dict[str, Any]) -> dict[str, Any]:
    statistics = report.statistics
    return {
        "alike": failures.alike_pairs(statistics, report.near, report.cofiring, _FAILURES_SHOWN),
        "frequent": failures.frequent_concepts(statistics, _FAILURES_SHOWN),
        "dead": failures.dead_concepts(statistics, _DEAD_SHOWN),
        **unclear,
    }
