"""What `explore` has gathered, for other programs: a table, SAEDashboard's JSON, the files that Neuronpedia imports.

Followed are SAEDashboard 0.8's `NeuronpediaDashboardBatch` (batch-N.json, which its runner writes) and the folder that
its `neuronpedia_export` makes of it: MODEL/SOURCE/ with features, activations and explanations as gzipped JSON lines.
But: activations have the sixty steps of the pages, and fields that the pages do not know stay empty: alignment with and
correlation to neurons, and the histogram of logits.
"""

import csv
import dataclasses
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd

from sae_lens_sparsemax.explore.explored import PAGES, Example, Explored, open_explored
from sae_lens_sparsemax.explore.labels import Label, labels_of
from sae_lens_sparsemax.explore.run import explore
from sae_lens_sparsemax.files import atomic_directory, atomic_file, refuse_to_replace, require_writable
from sae_lens_sparsemax.models.encoding import hook_name_of
from sae_lens_sparsemax.models.saved_saes import load_sae, place_of
from sae_lens_sparsemax.models.vision_at_hook import reads_images
from sae_lens_sparsemax.settings.sentences import must_be, must_be_one_of
from sae_lens_sparsemax.settings.values import expanded

Format = Literal["csv", "parquet", "neuronpedia", "saedashboard"]
_BATCH = 128
_EXAMPLES_IN_TABLE = 3
_TOKENS_AROUND = 10
# SAEDashboard's marks of its group "top activations".
_TOP = {"bin_min": -1, "bin_contains": -1}
_COLUMNS = {
    "active": "n_active", "samples": "n_samples", "mean": "mean_activation", "max": "max_activation",
    "later": "later_share", "norm": "decoder_norm", "entropy": "class_entropy", "mono": "monosemanticity",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """What to write, and what Neuronpedia is to call it."""

    format: Format = "csv"
    """csv or parquet: a table with a row for each concept; saedashboard: batch-N.json as SAEDashboard writes them;
    neuronpedia: the folder that Neuronpedia imports."""
    number: int = 0
    """Which of the SAEs in the pages, from 0."""
    model_id: str | None = None
    """Neuronpedia's name of the model; by default the last part of the model's name."""
    source_set: str = "sparsemax"
    """Neuronpedia's name of the set of SAEs; the SAE itself is called LAYER-SOURCE_SET."""
    layer: int | None = None
    """The SAE's layer; by default the number in the name of its hook."""
    release: str = "sparsemax"
    """Neuronpedia's name of the release."""
    creator_name: str = ""
    """Who made the SAE."""
    creator_id: str = "clkht01d40000jv08hvalcvly"
    """Neuronpedia's id of the creator; by default the one that its own import takes where none is given."""


def export(source: str | Path, output: str | Path | None = None, settings: ExportSettings | None = None) -> Path:
    """Write what the pages of an SAE say in another format; an SAE without pages is explored first.

    Args:
        source: folder of an SAE, `user/repository:id` on the hub, or the folder of pages.
        output: the file or, for `saedashboard` and `neuronpedia`, the new or empty folder to write; by default one
            named after the format, beside the pages.
        settings: what to write.

    Returns:
        Where it is.

    Raises:
        ValueError: there is neither, the pages are of another SAE, the format does not fit (images are written as
            tables alone), or the place cannot be written to.
    """
    settings, place = settings or ExportSettings(), place_of(source)
    if settings.format not in get_args(Format):
        raise must_be_one_of("format", settings.format, get_args(Format))
    is_table = settings.format in ("csv", "parquet")
    pages = open_explored(source)
    name = f"concepts.{settings.format}" if is_table else settings.format
    path = expanded(output) if output else (place if pages is None else pages.folder.parent) / name
    if path.is_dir() and (is_table or any(path.iterdir())):
        raise must_be("output_path", "a file" if is_table else "a new or empty folder", str(path))
    require_writable(path.parent, "output_path")
    if is_table:
        refuse_to_replace(path, lambda file: _begins(file, b"concept,label" if settings.format == "csv" else b"PAR1"))
    if pages is not None and settings.number:
        pages, source = Explored(pages.folder, settings.number), pages.folder
    sees, hook = _read_by(str(source)) if pages is None else (pages.site["kind"] == "image", pages.summary["hook"])
    # All that may be refused, before an SAE is explored for minutes.
    if settings.number and pages is None:
        raise must_be("number", "0, as this SAE has no pages with others", settings.number)
    if not is_table and sees:
        raise must_be("format", "csv or parquet for an SAE on images", settings.format)
    layer = 0 if is_table else _layer(hook, settings)
    if pages is None:
        pages = Explored(explore([str(source)], place / PAGES).parent)
    labels = labels_of(source, pages)
    if is_table:
        table = concept_table(pages, labels)
        with atomic_file(path) as new:
            if settings.format == "csv":
                # Tokens hold line ends of every kind, which pandas does not put into quotes by itself.
                table.map(_no_formula).to_csv(new, index=False, quoting=csv.QUOTE_NONNUMERIC)
            else:
                table.to_parquet(new, index=False)
        return path
    batches = _batches(pages)
    with atomic_directory(path) as folder:
        if settings.format == "saedashboard":
            for number, features in batches:
                named = {"model_id": _model_id(pages, settings), "layer": layer}
                batch = {**named, "sae_set": settings.source_set, "sae_id_suffix": None, "features": features}
                (folder / f"batch-{number}.json").write_text(json.dumps(batch, allow_nan=False), encoding="utf-8")
        else:
            _write_neuronpedia(folder, pages, settings, layer, labels, batches)
    return path


def _begins(file: Path, beginning: bytes) -> bool:
    """Whether the first bytes of a file, without quotes, are these."""
    with file.open("rb") as opened:
        return opened.read(2 * len(beginning)).replace(b'"', b"").startswith(beginning)


def concept_table(pages: Explored, labels: Mapping[int, Label] | None = None) -> pd.DataFrame:
    """A row for each concept: label and whose it is, statistics, promoted tokens, nearest concept, best examples."""
    table = pages.table
    found = pd.DataFrame({"concept": range(pages.d_sae)})
    for column, name in (("label", "text"), ("label_by", "by"), ("label_score", "score")):
        found[column] = [getattr((labels or {}).get(c), name, None) for c in found["concept"]]
    found["frequency"] = [n / max(1, table["n_tokens"]) for n in table["active"]]
    for column, name in _COLUMNS.items():
        if table[column] is not None:
            found[name] = table[column]
    near = [pair or (None, None) for pair in table["near"]]
    found["nearest"] = pd.array([concept for concept, _ in near], dtype="Int64")
    found["nearest_cosine"] = [cosine for _, cosine in near]
    if pages.site["kind"] == "text":
        for key, name in (("p", "promoted"), ("s", "suppressed")):
            found[name] = ["|".join(token for token, _ in concept.get(key, [])) for concept in pages.concepts()]
    best = [[_shown(pages, example) for example in pages.examples(c)[:_EXAMPLES_IN_TABLE]] for c in found["concept"]]
    for place in range(_EXAMPLES_IN_TABLE):
        found[f"example_{place + 1}"] = [shown[place] if place < len(shown) else None for shown in best]
    return found


def _no_formula(cell: Any) -> Any:
    """A cell as pages write it too: spreadsheets would run a text that begins so as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _shown(pages: Explored, example: Example) -> str:
    """An example in a cell: the tokens around the strongest, which is in «», or the image's file."""
    if pages.site["kind"] == "image":
        return f"images/{example.sample}.jpg"
    tokens, peak = pages.tokens(example.sample), example.peak
    before, after = tokens[max(0, peak - _TOKENS_AROUND) : peak], tokens[peak + 1 : peak + 1 + _TOKENS_AROUND]
    return "".join([*before, f"«{tokens[peak]}»", *after])


def _batches(pages: Explored) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """SAEDashboard's features, some at a time, with the number of each batch."""
    concepts = (_feature(pages, c) for c in range(pages.d_sae))
    for number in range(-(-pages.d_sae // _BATCH)):
        yield number, list(islice(concepts, _BATCH))


def _feature(pages: Explored, c: int) -> dict[str, Any]:
    concept = pages.concept(c)
    low, width, counts = concept["h"]
    empty: dict[str, Any] = {
        name: []
        for name in (
            "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
            "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
            "correlated_features_l1", "correlated_features_pearson", "logits_hist_data_bar_heights",
            "logits_hist_data_bar_values", "decoder_weights_dist", "vector",
        )
    }  # fmt: skip
    return empty | {
        "feature_index": c,
        "neg_str": [token for token, _ in concept.get("s", [])],
        "neg_values": [value for _, value in concept.get("s", [])],
        "pos_str": [token for token, _ in concept.get("p", [])],
        "pos_values": [value for _, value in concept.get("p", [])],
        "frac_nonzero": pages.table["active"][c] / max(1, pages.table["n_tokens"]),
        "freq_hist_data_bar_values": [low + width * (place + 0.5) for place in range(len(counts))],
        "freq_hist_data_bar_heights": counts,
        "n_prompts_total": pages.summary["n_samples"],
        "n_tokens_in_prompt": pages.site["tokens"],
        "dataset": pages.summary["dataset"],
        "activations": [
            {
                **_TOP,
                "bin_max": example.acts[example.peak],
                "tokens": pages.tokens(example.sample),
                "values": [round(act, 4) for act in example.acts],
                "qualifying_token_index": example.peak,
            }
            for example in pages.examples(c)
        ],
    }


def _model_id(pages: Explored, settings: ExportSettings) -> str:
    return settings.model_id or str(pages.summary["model"]).rstrip("/").rpartition("/")[2]


def _read_by(source: str) -> tuple[bool, str]:
    """Whether an SAE reads images, and its hook."""
    sae = load_sae(source)
    return reads_images(sae), hook_name_of(sae)


def _layer(hook: str, settings: ExportSettings) -> int:
    if settings.layer is not None:
        return settings.layer
    if (found := re.search(r"\.(\d+)(\.|$)", hook)) is None:
        raise must_be("layer", "given, as the name of the hook has none", hook)
    return int(found[1])


def _write_neuronpedia(
    folder: Path,
    pages: Explored,
    settings: ExportSettings,
    layer: int,
    labels: Mapping[int, Label],
    batches: Iterable[tuple[int, list[dict[str, Any]]]],
) -> None:
    """Write MODEL/SOURCE/ as Neuronpedia's import reads it."""
    model, set_name = _model_id(pages, settings), settings.source_set
    source, now = f"{layer}-{set_name}", datetime.now(timezone.utc).isoformat()
    made = {"creatorId": settings.creator_id, "createdAt": now}
    of_concept = {"modelId": model, "layer": source}
    place = folder / model / source
    hook = pages.summary["hook"]
    _write_lines(place / "release.jsonl", [{
        "name": settings.release, "description": settings.release, "descriptionShort": settings.release, "urls": [],
        "creatorName": settings.creator_name, "creatorNameShort": settings.creator_name, "visibility": "PUBLIC", **made,
    }])  # fmt: skip
    _write_lines(place / "model.jsonl", [{
        "id": model, "instruct": "instruct" in model.lower() or model.endswith("-it"), "displayName": model,
        "displayNameShort": model, "layers": 0, "neuronsPerLayer": 0, "owner": "", "updatedAt": now,
        "visibility": "PUBLIC", **made,
    }])  # fmt: skip
    _write_lines(place / "sourceset.jsonl", [{
        "modelId": model, "name": set_name, "releaseName": settings.release, "creatorName": settings.creator_name,
        "description": f"{pages.summary['architecture']} SAEs", "type": "", "urls": [], "visibility": "PUBLIC", **made,
    }])  # fmt: skip
    _write_lines(place / "source.jsonl", [{
        "id": source, "modelId": model, "setName": set_name, "dataset": pages.summary["dataset"],
        "num_prompts": pages.summary["n_samples"], "num_tokens_in_prompt": pages.site["tokens"],
        "notes": f"hook {hook}, architecture {pages.summary['architecture']}", "visibility": "PUBLIC", **made,
    }])  # fmt: skip
    for number, features in batches:
        rows: dict[str, list[dict[str, Any]]] = {"features": [], "activations": [], "explanations": []}
        for feature in features:
            of_data = ("activations", "feature_index", "n_prompts_total", "n_tokens_in_prompt", "dataset")
            kept = {key: value for key, value in feature.items() if key not in of_data}
            c, index = feature["feature_index"], str(feature["feature_index"])
            near, highest = (
                pages.concept(c)["n"],
                max((a["bin_max"] for a in feature["activations"]), key=abs, default=0),
            )
            rows["features"].append({
                **of_concept, **made, "index": index, "hookName": hook, "hasVector": False,
                "sourceSetName": set_name, "maxActApprox": highest,
                "topkCosSimIndices": [other for other, _ in near], "topkCosSimValues": [cosine for _, cosine in near],
                **kept,
            })  # fmt: skip
            for rank, found in enumerate(feature["activations"]):
                values, peak = found["values"], found["qualifying_token_index"]
                rows["activations"].append({
                    "id": _identifier(model, source, index, rank), **of_concept, **made, "index": index,
                    "tokens": found["tokens"], "values": values, "maxValue": values[peak], "maxValueTokenIndex": peak,
                    "minValue": min(values), "binMin": found["bin_min"], "binMax": found["bin_max"],
                    "binContains": found["bin_contains"], "qualifyingTokenIndex": peak, "dfaValues": [],
                    "lossValues": [],
                })  # fmt: skip
            label = labels.get(c)
            if label is not None and label.by != "explore":  # tokens that a concept fires on explain nothing
                rows["explanations"].append({
                    "id": _identifier(model, source, index, "explanation"), **of_concept, "index": index,
                    "description": label.text, "authorId": settings.creator_id, "createdAt": now,
                    "explanationModelName": None if label.by == "person" else label.by,
                    "notes": None if label.score is None else f"balanced accuracy of detection {label.score:.3f}",
                })  # fmt: skip
        for kind, lines in rows.items():
            if lines:
                _write_lines(place / kind / f"batch-{number}.jsonl.gz", lines, gzip.compress)


def _identifier(*parts: Any) -> str:
    """25 letters as Neuronpedia's ids have, the same for the same parts."""
    return "c" + hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _write_lines(path: Path, rows: list[dict[str, Any]], packed: Callable[[bytes], bytes] = bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()))
