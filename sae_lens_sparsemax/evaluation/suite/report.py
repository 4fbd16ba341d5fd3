"""The Markdown report of a suite: one row per measure, with what it was measured on and how it is defined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from sae_lens_sparsemax.display.tables import markdown_table, number, percent
from sae_lens_sparsemax.evaluation.predictions import PREDICTIONS
from sae_lens_sparsemax.evaluation.reconstruction import RECONSTRUCTION
from sae_lens_sparsemax.files import atomic_write_text

REPORT_FILENAME = "report.md"

Row = tuple[str, Any]


def write_report(results: Mapping[str, Any], pictures: Iterable[Path], folder: Path) -> Path:
    """Write the report from the results of `evaluate_suite` and return its path."""
    sae, settings = results["sae"], results["settings"]
    lines = [
        f"# {sae['source']}",
        "",
        f"{sae['architecture']}, {sae['d_sae']:,} concepts for activations of width {sae['d_in']:,}, at "
        f"`{settings['hook_name']}` of {settings['model_name']}.",
        "",
    ]
    for title, rows in tables(results):
        lines += [f"## {title}", "", markdown_table(["measure", "value"], rows), ""]
    lines += [f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures]
    lines += ["", "All measures, with the settings they were taken at: `results.json` and one file for each group.", ""]
    path = folder / REPORT_FILENAME
    atomic_write_text(path, "\n".join(lines))
    return path


def tables(results: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """Title and rows of each metric group that was measured; a group that was not says why."""
    found = []
    for name, result in results["groups"].items():
        if "not_measured" in result:
            found.append((name, [("not measured", result["not_measured"])]))
        else:
            found.append((name, [row for part, value in result.items() for row in _rows(part, value)]))
    return found


def _rows(part: str, value: Any) -> list[Row]:
    if part == "reconstruction":
        return [("tokens or images", value["n_tokens"]), *_named(RECONSTRUCTION, value), _l0("L0", value, "l0")]
    if part in ("cross_entropy", "divergence"):
        return _named(PREDICTIONS, value)
    if part == "geometry":
        rest = [(name, value[name]) for name in ("cknna_acts", "cknna_recon", "decoder_orthogonality")]
        return [*_rows("reconstruction", value["reconstruction"]), *rest]
    if part == "against_complexity":
        return [
            ("L0 and complexity of the image, rank correlation", value["spearman"]),
            ("L0 and complexity of the image, linear correlation", value["pearson"]),
        ]
    if part == "monosemanticity":
        return [(name.replace("_", " "), x) for name, x in value.items()]
    if part == "zero_shot":
        return zero_shot_rows(value)
    if part == "names":
        return name_rows(value)
    if part == "probing":
        return probing_rows(value)
    if isinstance(value, Mapping):
        return [_l0(f"L0 {part.replace('_', ' ')}".replace(" l0", ""), value, "mean")] if "mean" in value else []
    return [(part.replace("_", " "), value)]


def zero_shot_rows(value: Mapping[str, Any]) -> list[Row]:
    """Accuracy over images, in per cent: of the plain model, with all concepts, and with some on or off."""
    rows: list[Row] = [
        ("images tested", value["n_images"]),
        ("threshold", value["threshold"]),
        ("no SAE", percent(value["no_sae"]["images"])),
        ("all concepts on", percent(value["all_concepts"]["images"])),
    ]
    for masked in value["masked"]:
        concepts = "" if masked["concepts"] == "top" else f", {masked['concepts'].replace('_', '-')} concepts"
        name = f"{masked['switch']}_{masked['n']}, {masked['mask']} mask{concepts}"
        rows.append((name, percent(masked["accuracy"]["images"])))
    return rows


def name_rows(value: Mapping[str, Any]) -> list[Row]:
    """How many guessed names fit other images, in per cent, of all concepts and of those of one class."""
    rows: list[Row] = [("images, half to name from", value["n_images"])]
    for kind, n, suffix in (("concepts", "n_concepts", ""), ("concepts of one class", "n_one_class", "_one_class")):
        rows.append((f"{kind} judged", value[n]))
        for source, text in (("from_images", "top images"), ("from_decoder", "the decoder")):
            rows.append((f"right names, from {text}", percent(value[source + suffix])))
    return [*rows, ("right names, at random", percent(value["chance"]))]


def probing_rows(value: Mapping[str, Any]) -> list[Row]:
    """Accuracy, AUC and F1 of every probe of every task, and the mean over tasks where there are several."""
    rows: list[Row] = []
    for task in value["tasks"]:
        rows.append((task["task"], f"{task['n_train']:,} texts to train on, {task['n_test']:,} to test on"))
        rows += [(f"{task['task']}, {probe}", _probe(scores)) for probe, scores in _probes(task)]
    if len(value["tasks"]) > 1:
        for same in zip(*map(_probes, value["tasks"]), strict=True):
            mean = {name: fmean(scores[name] for _, scores in same) for name in ("accuracy", "auc", "f1")}
            rows.append((f"mean over {len(same)} tasks, {same[0][0]}", _probe(mean)))
    if value["too_few_texts"]:
        rows.append(("too few texts", ", ".join(value["too_few_texts"])))
    return rows


def _probes(task: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    sparse = [(f"k = {scores['k']}", scores) for scores in task["sparse"]]
    return [*sparse, ("raw activations", task["raw"]), ("one class", task["majority"])]


def _probe(scores: Mapping[str, Any]) -> str:
    return f"accuracy {percent(scores['accuracy'])}, AUC {number(scores['auc'])}, F1 {number(scores['f1'])}"


def _named(names: Mapping[str, str], values: Mapping[str, Any]) -> list[Row]:
    return [(text, values[name]) for name, text in names.items() if name in values]


def _l0(title: str, values: Mapping[str, Any], mean: str) -> Row:
    prefix = "l0_" if mean == "l0" else ""
    low, middle, high = (number(values[f"{prefix}p{p}"], 0) for p in (5, 50, 95))
    return (f"{title}, mean (p5 / p50 / p95)", f"{number(values[mean], 2)} ({low} / {middle} / {high})")
