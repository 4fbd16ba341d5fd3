import json

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

from sae_lens_sparsemax.training import log


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved during the test."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    return figures


def write(path, lines):
    path.write_text("".join(json.dumps({"n_training_samples": 1} | line) + "\n" for line in lines))
    return path


def test_there_is_one_panel_per_quantity_that_exists(tmp_path, drawn):
    lines = [{"step": s, "losses/overall_loss": 9.0 / s, "metrics/l0": 4.0, "metrics/tau": None} for s in (1, 2, 3)]
    log.plot_training_curves(write(tmp_path / "m.jsonl", lines), tmp_path / "c.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["Loss", "Active concepts per token (L0)"]
    assert list(drawn[0].axes[0].lines[0].get_ydata()) == [9.0, 4.5, 3.0]


def test_the_spread_over_tokens_is_drawn_around_the_mean(tmp_path, drawn):
    keys = {"metrics/l0": 4.0, "metrics/l0_p5": 1.0, "metrics/l0_p50": 3.0, "metrics/l0_p95": 90.0}
    log.plot_training_curves(write(tmp_path / "m.jsonl", [{"step": s, **keys} for s in (1, 2)]), tmp_path / "c.png")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["p5 to p95", "median", "mean"]
    assert axes.get_yscale() == "log"


def test_each_pass_has_its_line(tmp_path, drawn):
    lines = [{"step": s, "metrics/l0_pass_1": 4.0, "metrics/l0_pass_2": 2.0 * s} for s in (1, 2)]
    log.plot_training_curves(write(tmp_path / "m.jsonl", lines), tmp_path / "c.png")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["pass 1", "pass 2"]
    assert [list(line.get_ydata()) for line in axes.lines] == [[4.0, 4.0], [2.0, 4.0]]


def test_missing_values_leave_gaps_and_unknown_files_are_refused(tmp_path, drawn):
    lines = [{"step": 1, "metrics/tau": 1.0}, {"step": 2, "metrics/tau": None}, {"step": 3}]
    log.plot_training_curves(write(tmp_path / "m.jsonl", lines), tmp_path / "c.png")
    with pytest.raises(ValueError, match="none of the quantities"):
        log.plot_training_curves(write(tmp_path / "n.jsonl", [{"step": 1, "other": 2}]), tmp_path / "c.png")


@pytest.mark.parametrize("values", [[3], [0, 0, 0], [32] * 50, [1, 2, 3, 4000], list(range(500))])
def test_the_histogram_holds_every_token_up_to_the_axis(values, tmp_path, drawn):
    log.plot_l0_histogram(torch.tensor(values), tmp_path / "h.png")
    bars = sum(patch.get_height() for patch in drawn[0].axes[0].patches[:-1])
    label = drawn[0].axes[0].get_xlabel()
    beyond = int(label.split(", ")[1].split()[0]) if "beyond" in label else 0
    assert bars == pytest.approx(1 - beyond / len(values))


def test_an_empty_histogram_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one token"):
        log.plot_l0_histogram(torch.tensor([]), tmp_path / "h.png")


@pytest.mark.usefixtures("pictures")
def test_drawing_leaves_matplotlibs_settings_alone(tmp_path):
    settings = dict(matplotlib.rcParams)
    log.plot_l0_histogram(torch.tensor([1, 2, 3]), tmp_path / "h.png")
    assert dict(matplotlib.rcParams) == settings
    assert (tmp_path / "h.png").stat().st_size > 1000
