"""The whole comparison, which goes on where it was interrupted when it is started again."""

from dataclasses import asdict
from pathlib import Path

from tqdm.auto import tqdm

from sae_lens_sparsemax.compare.config import CompareConfig
from sae_lens_sparsemax.compare.report import write_plots, write_tables
from sae_lens_sparsemax.compare.runs import (
    RunResult,
    all_runs,
    evaluate_chosen,
    finished_run,
    train_and_evaluate,
)
from sae_lens_sparsemax.compare.selection import best_points
from sae_lens_sparsemax.compare.sources import ComparedActivations
from sae_lens_sparsemax.compare.synthetic_source import SyntheticSource
from sae_lens_sparsemax.compare.text_source import TextSource
from sae_lens_sparsemax.compare.vision_source import VisionSource
from sae_lens_sparsemax.data.loading import refuse_missing_data
from sae_lens_sparsemax.files import only_writer, save_json


def compare(cfg: CompareConfig) -> Path:
    """Train every SAE of a comparison on the same activations, measure all, and write tables and plots.

    Activations and finished runs are kept in `cfg.output_path`; a repeated call with the same settings only
    does what is missing, and tables and plots are rewritten after every call. Runs whose settings changed are
    trained again.

    Args:
        cfg: The settings.

    Returns:
        The Markdown table; `table.csv`, `matched.csv`, `runs.csv`, `pareto.png` and `pareto_*.png` lie beside it.

    Raises:
        ValueError: If the data is too small, the disk too full, a setting wrong, or another process writes there.
    """
    folder = Path(cfg.output_path)
    with only_writer(folder, "output_path"):
        return _compare(cfg, folder)


def _compare(cfg: CompareConfig, folder: Path) -> Path:
    refuse_missing_data(cfg.dataset_path, *(data.path for data in cfg.eval_datasets.values()))
    save_json(asdict(cfg), folder / "config.json")
    source = _source(cfg)
    runs = all_runs(cfg)
    results: list[RunResult] = []
    for run in (bar := tqdm(runs, desc="Runs", unit="run")):
        bar.set_postfix_str(run.name)
        results.append(finished_run(run, source) or train_and_evaluate(run, source))
    points = best_points(cfg, results)
    chosen = {(result.arm, result.sparsity, result.lr) for point in points for result in point.results}
    for i, run in enumerate(tqdm(runs, desc="Evaluation at the best learning rates", unit="run")):
        if (run.arm.name, run.sparsity, run.lr) in chosen:
            results[i] = evaluate_chosen(run, source)
    points = best_points(cfg, results)
    write_plots(cfg, points, folder)
    return write_tables(cfg, points, results, folder)


def _source(cfg: CompareConfig) -> ComparedActivations:
    if cfg.synthetic_model is not None:
        return SyntheticSource(cfg)
    return VisionSource(cfg) if cfg.images is not None else TextSource(cfg)
