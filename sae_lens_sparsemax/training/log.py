"""The records of a training run: JSON lines of its steps and of its evaluations, and pictures at the end.

SAELens's trainer logs and evaluates with wandb on only; these files are written with it and without. `trainer.py`
calls both when it is time.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import wandb
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import Evaluator

from sae_lens_sparsemax.display.plots import (
    BLUE,
    PALE_BLUE,
    QUIET,
    draw_l0_histogram,
    legend,
    log_scale,
    panels,
    save_figure,
    series_style,
    style,
)
from sae_lens_sparsemax.evaluation.reconstruction import EXPLAINED_VARIANCE
from sae_lens_sparsemax.files import atomic_write_text, reading, writing
from sae_lens_sparsemax.settings.sentences import must_be

METRICS_FILENAME = "metrics.jsonl"
EVALUATION_FILENAME = "evaluation.jsonl"
CURVES_FILENAME = "training_curves.png"
L0_HISTOGRAM_FILENAME = "l0_histogram.png"
# How many of the last logged steps the L0 histogram covers.
_HISTOGRAM_STEPS = 10


class TrainingLog:
    """Writes ``metrics.jsonl`` while a trainer runs, and two pictures when it is closed.

    Each line holds ``step``, ``n_training_samples``, ``seconds`` (wall time spent training, resumed runs
    added up), everything in the trainer's own log dictionary, and ``metrics/dead_fraction``.
    Values that are not finite are written as null.

    Args:
        folder: where the files go; made if absent.
        every: logging interval in steps; the last step of a run is always logged.
    """

    def __init__(self, folder: Path | str, every: int = 10) -> None:
        if every < 1:
            raise must_be("every", "at least 1 step", every)
        self.folder = Path(folder)
        self.every = every
        self._l0_per_step: deque[torch.Tensor] = deque(maxlen=_HISTOGRAM_STEPS)
        self._seconds_before = 0.0
        self._started: float | None = None
        self.is_written = True
        """False where another process of the run writes the files; what they would hold is found out all the same."""

    @property
    def metrics_path(self) -> Path:
        """The JSON-lines file."""
        return self.folder / METRICS_FILENAME

    def start(self, n_training_samples: int) -> None:
        """Begin, or go on after so many samples: lines beyond are dropped, so a resumed run has each step once."""
        kept = _drop_lines_beyond(n_training_samples, self.metrics_path) if self.is_written else []
        self._seconds_before = kept[-1].get("seconds") or 0.0 if kept else 0.0
        self._started = time.perf_counter()

    @torch.no_grad()
    def write(self, trainer: Any, output: TrainStepOutput, step: int) -> None:
        """Add the line of a step of a `RunTrainer`."""
        assert self._started is not None, "start() comes first"
        self._l0_per_step.append(trainer.l0_per_token(output).cpu())
        line = {
            "step": step,
            "n_training_samples": trainer.n_training_samples,
            "seconds": round(self._seconds_before + time.perf_counter() - self._started, 3),
            **trainer.build_train_step_log_dict(output, trainer.n_training_samples),
            "metrics/dead_fraction": trainer.dead_neurons.float().mean().item(),
        }
        if self.is_written:
            _add_line(line, self.metrics_path)

    def close(self) -> None:
        """Draw the training curves and, if a step was logged since ``start``, the L0 histogram."""
        if self._started is None or not self.is_written or not read_metrics(self.metrics_path):
            return
        plot_training_curves(self.metrics_path, self.folder / CURVES_FILENAME)
        if self._l0_per_step:
            plot_l0_histogram(torch.cat(list(self._l0_per_step)), self.folder / L0_HISTOGRAM_FILENAME)


class EvaluationLog:
    """Runs an evaluator while a trainer runs, for a line in ``evaluation.jsonl`` each time, and for wandb if it is on.

    A line holds ``step``, ``n_training_samples`` and the evaluator's metrics.

    Args:
        folder: where the file goes; None writes none.
        evaluator: what to run, of the signature of SAELens's evaluators.
        every: steps between two evaluations; 0 evaluates after the last step alone.
        prefix: of the names under which wandb shows the metrics.
    """

    def __init__(self, folder: Path | str | None, evaluator: Evaluator[Any], every: int, prefix: str = "evaluation/"):
        self.path = Path(folder) / EVALUATION_FILENAME if folder is not None else None
        self.evaluator, self.every, self.prefix = evaluator, every, prefix
        self.is_written = True
        """False where another process of the run writes the file."""

    def start(self, n_training_samples: int) -> None:
        """Begin, or go on after so many samples: lines beyond are dropped."""
        if self.path is not None and self.is_written:
            _drop_lines_beyond(n_training_samples, self.path)

    def write(self, trainer: Any, step: int) -> None:
        """Evaluate the SAE of a `RunTrainer` as it is and add the line."""
        metrics = self.evaluator(trainer.sae_to_evaluate(), trainer.data_provider, trainer.activation_scaler)
        if self.path is not None and self.is_written:
            _add_line({"step": step, "n_training_samples": trainer.n_training_samples, **metrics}, self.path)
        if trainer.cfg.logger.log_to_wandb:
            # The step before is the one SAELens logs under after this; wandb takes no earlier step later.
            wandb.log({f"{self.prefix}{name}": value for name, value in metrics.items()}, step=step - 1)


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line cut short by a crash is left out, no file gives [].

    Raises:
        ValueError: another line is none that was written: numbers and nulls by name, with the number of samples.
    """
    path = Path(path)
    if not path.exists():
        return []
    with reading(path):
        lines = path.read_bytes().splitlines()
    metrics: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
            if number == len(lines):
                break
        if not isinstance(values, dict) or not _is_line(values):
            raise ValueError(f"line {number} of {str(path)!r} must be a line of the log, got {line[:60]!r}")
        metrics.append(values)
    return metrics


def _is_line(values: dict[str, Any]) -> bool:
    is_number = all(value is None or isinstance(value, int | float) for value in values.values())
    return is_number and all(values.get(name) is not None for name in ("step", "n_training_samples"))


def _drop_lines_beyond(n_training_samples: int, path: Path) -> list[dict[str, Any]]:
    """Rewrite a JSON-lines file without the lines of later steps; returns those kept."""
    kept = [line for line in read_metrics(path) if line["n_training_samples"] <= n_training_samples]
    atomic_write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def _add_line(line: Mapping[str, Any], path: Path) -> None:
    finite = {key: value if math.isfinite(value) else None for key, value in line.items()}
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite) + "\n")


class _Panel(NamedTuple):
    title: str
    key: str
    band: tuple[str, str] | None = None
    middle: str | None = None
    is_fraction: bool = False
    may_be_log: bool = False
    from_zero: bool = False
    of_passes: bool = False


_PANELS = (
    _Panel("Loss", "losses/overall_loss", may_be_log=True),
    _Panel(EXPLAINED_VARIANCE, "metrics/explained_variance"),
    _Panel(
        "Active concepts per token (L0)",
        "metrics/l0",
        band=("metrics/l0_p5", "metrics/l0_p95"),
        middle="metrics/l0_p50",
        may_be_log=True,
        from_zero=True,
    ),
    _Panel("Concepts that each pass selects", "metrics/l0_pass_1", from_zero=True, of_passes=True),
    _Panel("Dead concepts", "metrics/dead_fraction", is_fraction=True),
    _Panel("Gate scale g", "metrics/gate_scale", may_be_log=True),
    _Panel("Standard deviation of scores", "metrics/score_std"),
    _Panel("Threshold τ", "metrics/tau"),
    _Panel("Learning rate", "details/current_learning_rate", from_zero=True),
)


def plot_training_curves(metrics_jsonl: Path | str, png: Path | str) -> None:
    """Draw one panel per quantity that ``metrics.jsonl`` holds, over the training step.

    Args:
        metrics_jsonl: file written by ``TrainingLog``.
        png: picture to write.

    Raises:
        ValueError: the file holds none of the known quantities.
    """
    lines = read_metrics(metrics_jsonl)
    drawn = [panel for panel in _PANELS if any(line.get(panel.key) is not None for line in lines)]
    if not drawn:
        raise ValueError(f"{metrics_jsonl} holds none of the quantities that training curves show.")
    n_rows = 1 if len(drawn) <= 4 else 2
    figure, all_axes = panels(len(drawn), 4.1, 3.0, n_columns=-(-len(drawn) // n_rows))
    for axes, panel in zip(all_axes, drawn, strict=True):
        _draw_panel(axes, panel, lines)
    save_figure(figure, Path(png))


def plot_l0_histogram(l0_values: torch.Tensor, png: Path | str) -> None:
    """Draw the distribution of the number of active concepts over single tokens.

    Args:
        l0_values: ``(n_tokens,)`` counts.
        png: picture to write.

    Raises:
        ValueError: there are no values.
    """
    if not len(l0_values):
        raise must_be("l0_values", "of at least one token", 0)
    figure, (axes,) = panels(1, 7.2, 4.2)
    draw_l0_histogram(axes, torch.bincount(l0_values.cpu().long()).numpy(), "Active concepts per token")
    save_figure(figure, Path(png))


def _draw_panel(axes: Axes, panel: _Panel, lines: list[dict[str, Any]]) -> None:
    steps, values = _column(lines, "step"), _column(lines, panel.key)
    shown = [values]
    if panel.band is not None:
        low, high = (_column(lines, key) for key in panel.band)
        if np.isfinite(low).any() and np.isfinite(high).any():
            axes.fill_between(steps, low, high, color=PALE_BLUE, alpha=0.45, lw=0, label="p5 to p95")
            shown += [low, high]
    if panel.middle is not None and np.isfinite(middle := _column(lines, panel.middle)).any():
        axes.plot(steps, middle, color=QUIET, lw=1.0, ls="--", label="median")
    marker = "o" if np.isfinite(values).sum() == 1 else None
    axes.plot(steps, values, color=BLUE, lw=1.5, marker=marker, label="pass 1" if panel.of_passes else "mean")
    for n in itertools.count(2) if panel.of_passes else ():
        if not np.isfinite(later := _column(lines, f"metrics/l0_pass_{n}")).any():
            break
        axes.plot(steps, later, color=series_style(n - 1)["color"], lw=1.5, marker=marker, label=f"pass {n}")
    style(axes, panel.title, "step", grid="y")
    if panel.key == "metrics/explained_variance":
        # The first steps can be far below zero; the part worth seeing is above.
        axes.set_ylim(bottom=max(np.nanmin(values), -0.1), top=1.0)
    elif panel.is_fraction:
        top = max(0.01, 1.1 * np.nanmax(values))
        axes.set_ylim(bottom=-0.02 * top, top=top)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    elif panel.may_be_log and _spans_decades(np.concatenate(shown)):
        log_scale(axes, "y")
    elif panel.from_zero:
        axes.set_ylim(bottom=0.0)
    if axes.get_legend_handles_labels()[1] != ["mean"]:
        legend(axes, frameon=False)


def _spans_decades(values: np.ndarray) -> bool:
    """Whether a log axis shows more: all values positive, and the largest over 20 times the smallest."""
    finite = values[np.isfinite(values)]
    return bool((finite > 0).all() and finite.max() > 20 * finite.min())


def _column(lines: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if line.get(key) is None else line[key] for line in lines], dtype=float)
