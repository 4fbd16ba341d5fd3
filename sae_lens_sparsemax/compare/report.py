"""What a comparison writes: tables, as Markdown and CSV, and Pareto plots of each measure against L0."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sae_lens_sparsemax.compare.config import CompareConfig
from sae_lens_sparsemax.compare.runs import RunResult
from sae_lens_sparsemax.compare.selection import MEASURES, Point, matched_values
from sae_lens_sparsemax.display.plots import INK, SMALL, log_scale, panels, save_figure, series_style, style
from sae_lens_sparsemax.display.tables import csv_table, markdown_table, mean_and_std, number
from sae_lens_sparsemax.evaluation.probing import KS
from sae_lens_sparsemax.evaluation.reconstruction import EXPLAINED_VARIANCE
from sae_lens_sparsemax.files import atomic_write_text

# Measures shown in the Markdown table, where they exist, with their heading and number of digits. The CSV
# files hold every measure.
COLUMNS = {
    "l0": ("L0", 1),
    "l0_p5": ("p5", 0),
    "l0_p50": ("p50", 0),
    "l0_p95": ("p95", 0),
    "explained_variance": (EXPLAINED_VARIANCE, 4),
    "ce_loss_score": ("CE score", 4),
    "ce_degradation": ("CE degradation", 4),
    **{f"probe_auc_k{k}": (f"probe AUC, k = {k}", 3) for k in KS},
    "probe_auc_without_sae": ("probe AUC, raw", 3),
    "zero_shot_accuracy": ("zero-shot", 4),
    "zero_shot_accuracy_without_sae": ("zero-shot, no SAE", 4),
    "cosine_similarity": ("cosine", 4),
    "mcc": ("MCC", 3),
    "f1": ("F1", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "uniqueness": ("uniqueness", 3),
    "dead_fraction": ("dead", 4),
}


def write_tables(cfg: CompareConfig, points: Sequence[Point], results: Sequence[RunResult], folder: Path) -> Path:
    """Write `table.md`, `table.csv` (best learning rates), `matched.csv` (the same L0) and `runs.csv` (all runs);
    return the Markdown file.

    Everything that is written comes from the results, so the files can be rebuilt at any time.
    """
    atomic_write_text(folder / "table.csv", csv_table(point_row(cfg, point) for point in points))
    atomic_write_text(folder / "matched.csv", csv_table(asdict(value) for value in matched_values(cfg, points)))
    atomic_write_text(folder / "runs.csv", csv_table(run_row(cfg, result) for result in results))
    table = folder / "table.md"
    atomic_write_text(table, markdown(cfg, points, results))
    return table


def point_row(cfg: CompareConfig, point: Point) -> dict[str, Any]:
    """A point as a flat row: mean and standard deviation over seeds of every measure, as `set/measure`."""
    row: dict[str, Any] = {
        "arm": point.arm,
        point.sparsity_field: point.sparsity,
        "lr": point.lr,
        "lr_at_edge": point.lr_at_edge,
        "seeds": len(point.results),
        "training_dead_fraction": fmean(result.training_dead_fraction for result in point.results),
        "training_seconds": fmean(result.training_seconds for result in point.results),
        **_cost(cfg, point.results),
    }
    for dataset in cfg.evaluation_sets:
        for measure in _measures(point.results, dataset):
            row[f"{dataset}/{measure}"] = point.mean(dataset, measure)
            row[f"{dataset}/{measure}/std"] = point.std(dataset, measure)
    return row


def run_row(cfg: CompareConfig, result: RunResult) -> dict[str, Any]:
    """A run as a flat row; its measures become columns named `set/measure`."""
    row = {key: value for key, value in asdict(result).items() if key not in ("metrics", "fingerprint")}
    row |= _cost(cfg, [result])
    for name, metrics in result.metrics.items():
        row |= {f"{name}/{measure}": value for measure, value in metrics.items()}
    return row


def _cost(cfg: CompareConfig, results: Sequence[RunResult]) -> dict[str, float]:
    """Training steps of an arm, and the mean wall time of one."""
    steps = next(cfg.steps_of(arm) for arm in cfg.arms if arm.name == results[0].arm)
    return {"steps": steps, "seconds_per_step": fmean(result.training_seconds for result in results) / steps}


def markdown(cfg: CompareConfig, points: Sequence[Point], results: Sequence[RunResult]) -> str:
    """One table per evaluation set at the best learning rates, and one of all runs."""
    where = "a synthetic model"
    if cfg.synthetic_model is None:
        where = f"{Path(cfg.model_name or '').name}, `{cfg.hook_name}`"
    lines = [
        "# Comparison",
        "",
        f"Activations of {where}; d_sae {cfg.d_sae}, {cfg.steps} steps of {cfg.batch_size} activations, "
        f"seeds {', '.join(map(str, cfg.seeds))}. Rows are at the learning rate with the highest explained "
        "variance on separate validation data; where the rate moves L0, one rate for the whole arm, whose line "
        "lies highest at the same L0, or the first that was given where their lines share no L0. ± is the standard "
        "deviation over seeds. A learning rate marked * is the smallest or largest of several that were tried: a "
        "better one may lie outside. Seconds are wall time of the training steps on the machine that ran them, with "
        "whatever else it did: compare those of one quiet machine.",
    ]
    for dataset in cfg.evaluation_sets:
        columns = [m for m in COLUMNS if any(point.values(dataset, m) for point in points)]
        cost = ["dead (training)", "steps", "seconds", "ms a step"]
        header = ["arm", "setting", "lr", *(COLUMNS[m][0] for m in columns), *cost]
        rows = [
            [
                point.arm,
                f"{point.sparsity_field} {point.sparsity:g}",
                f"{point.lr:g}{'*' if point.lr_at_edge else ''}",
                *(_cell(point, dataset, measure) for measure in columns),
                fmean(r.training_dead_fraction for r in point.results),
                _cost(cfg, point.results)["steps"],
                number(fmean(r.training_seconds for r in point.results), 0),
                number(1000 * _cost(cfg, point.results)["seconds_per_step"], 1),
            ]
            for point in points
        ]
        lines += ["", f"## {dataset}", "", markdown_table(header, rows), *_matched_tables(cfg, points, dataset)]
    chosen = {(point.arm, point.sparsity, point.lr) for point in points}
    first = cfg.evaluation_sets[0]
    rows = [
        [
            result.arm,
            f"{result.sparsity_field} {result.sparsity:g}",
            f"{result.lr:g}",
            result.seed,
            number(result.metrics["validation"]["explained_variance"], 4),
            number(result.metrics[first]["explained_variance"], 4),
            number(result.metrics[first]["l0"], 1),
            number(result.metrics[first]["dead_fraction"], 4),
            "diverged" if result.diverged else "best" if (result.arm, result.sparsity, result.lr) in chosen else "",
        ]
        for result in results
    ]
    explained = (f"{EXPLAINED_VARIANCE}, validation", f"the same, {first}")
    header = ["arm", "setting", "lr", "seed", *explained, f"L0 {first}", "dead", ""]
    return "\n".join([*lines, "", "## All runs", "", markdown_table(header, rows), ""])


def _matched_tables(cfg: CompareConfig, points: Sequence[Point], dataset: str) -> list[str]:
    here = [value for value in matched_values(cfg, points) if value.dataset == dataset]
    lines = []
    for measure in dict.fromkeys(value.measure for value in here):
        name, digits = COLUMNS[measure]
        rows = [
            [arm, *(mean_and_std(v.mean, v.std, digits) for v in here if (v.arm, v.measure) == (arm, measure))]
            for arm in dict.fromkeys(value.arm for value in here)
        ]
        header = [f"{name} at L0", *(f"{l0:g}" for l0 in cfg.matched_l0)]
        lines += ["", f"### {name} at the same L0 on {dataset}, interpolated", "", markdown_table(header, rows)]
    return lines


def _cell(point: Point, dataset: str, measure: str) -> str:
    digits = COLUMNS[measure][1]
    return mean_and_std(point.mean(dataset, measure), point.std(dataset, measure), digits)


def _measures(results: Iterable[RunResult], dataset: str) -> list[str]:
    return list(dict.fromkeys(m for result in results for m in result.metrics.get(dataset, {})))


# A value of the model itself, to which the measure tends, drawn as a dashed line.
_REFERENCES = {
    "zero_shot_accuracy": "zero_shot_accuracy_without_sae",
    **{f"probe_auc_k{k}": "probe_auc_without_sae" for k in KS},
}


def write_plots(cfg: CompareConfig, points: Sequence[Point], folder: Path) -> list[Path]:
    """Write `pareto_<measure>.png` of every measure there is, a panel per evaluation set, and `pareto.png` of all;
    nothing is written of measures that no run has."""
    measured: dict[str, list[tuple[str, str]]] = {}
    for measure in MEASURES:
        for dataset in cfg.evaluation_sets:
            if any(point.values(dataset, measure) for point in points):
                measured.setdefault(measure, []).append((dataset, measure))
    figures = {f"pareto_{measure}.png": _figure(points, here, len(here)) for measure, here in measured.items()}
    everything = [panel for here in measured.values() for panel in here]
    # The columns are evaluation sets, or measures where there is one set.
    n_columns = len(cfg.evaluation_sets) if len(cfg.evaluation_sets) > 1 else min(3, len(everything))
    if everything:  # where all runs diverged there is nothing to draw
        figures["pareto.png"] = _figure(points, everything, n_columns)
    return [save_figure(figure, folder / name) for name, figure in figures.items()]


def _figure(points: Sequence[Point], shown: Sequence[tuple[str, str]], n_columns: int) -> Figure:
    figure, all_axes = panels(len(shown), 5.2, 4.2, n_columns=n_columns, legend=2)
    for axes, (dataset, measure) in zip(all_axes, shown, strict=True):
        for place, arm in enumerate(dict.fromkeys(point.arm for point in points)):
            here = [p for p in points if p.arm == arm and p.values(dataset, measure)]
            here.sort(key=lambda p: p.mean(dataset, "l0"))
            axes.errorbar(
                [p.mean(dataset, "l0") for p in here],
                [p.mean(dataset, measure) for p in here],
                xerr=[p.std(dataset, "l0") for p in here],
                yerr=[p.std(dataset, measure) for p in here],
                label=arm,
                **series_style(place),
                markersize=5,
                linewidth=1.2,
                capsize=2,
            )
        _add_reference(axes, points, dataset, measure)
        log_scale(axes, "x", base=2)
        style(axes, dataset, "L0 (mean active concepts)", MEASURES[measure], grid="both")
        if measure == "explained_variance":
            spread_below_one(axes)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def spread_below_one(axes: Axes) -> None:
    """Scale the unexplained part by its logarithm: 0.98 and 0.99 lie as far apart as 0.8 and 0.9."""
    low, high = axes.get_ylim()
    drawn = [value for line in axes.get_lines() for value in np.asarray(line.get_ydata(), float)]
    if not drawn or max(drawn) >= 1:
        return
    high = min(high, 1 - 0.7 * (1 - max(drawn)))
    axes.set_ylabel(f"{axes.get_ylabel()} (log of the rest)")
    axes.set_yscale("function", functions=(_log_unexplained, lambda y: 1 - np.exp(-y)))
    axes.set_ylim(low, high)
    wide = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.96, 0.98, 0.99, 0.996, 0.998, 0.999, 0.9996, 0.9998, 0.9999]
    narrow = [round(0.05 * i, 2) for i in range(20)]
    # Over a narrow range the scale is nearly even, and so may the ticks be.
    even = MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=2).tick_values(low, high)
    inside = [[tick for tick in ticks if low <= tick <= high] for ticks in (wide, narrow, even)]
    axes.set_yticks(next(ticks for ticks, enough in zip(inside, (4, 2, 0), strict=True) if len(ticks) >= enough))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.10g}")


def _log_unexplained(explained: np.ndarray) -> np.ndarray:
    # Matplotlib also tries values beyond the limits.
    return -np.log(np.maximum(1 - np.asarray(explained, float), 1e-12))


def _add_reference(axes: Axes, points: Sequence[Point], dataset: str, measure: str) -> None:
    reference = _REFERENCES.get(measure)
    values = [value for point in points for value in point.values(dataset, reference)] if reference else []
    if values:
        axes.axhline(values[0], color=INK, linestyle="--", linewidth=1)
        axes.annotate(
            "without SAE", (0.01, values[0]), xycoords=("axes fraction", "data"), ha="left", va="bottom", fontsize=SMALL
        )
