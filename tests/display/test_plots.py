"""What plots have in common: whole files, one style for the n-th series, and L0 counted once."""

import numpy as np
import pytest
from PIL import Image

from sae_lens_sparsemax.display.plots import (
    draw_l0_histogram,
    log_scale,
    panels,
    save_figure,
    series_style,
)


def test_panels_fill_rows_and_leave_no_empty_axes():
    figure, axes = panels(5, 2, 1, n_columns=3, legend=1.5)
    assert (len(axes), len(figure.axes)) == (5, 5)
    assert tuple(figure.get_size_inches()) == (7.5, 2)


@pytest.mark.usefixtures("pictures")
def test_a_figure_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    figure, _ = panels(1, 2, 1)
    with Image.open(save_figure(figure, tmp_path / "a.png")) as picture:
        assert picture.size == (260, 130)
    before = (tmp_path / "a.png").read_bytes()

    def broken(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


def test_no_two_of_many_series_look_the_same():
    looks = [tuple(series_style(number).values()) for number in range(100)]
    assert len(set(looks)) == 100


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_of_an_l0_histogram_are_numpys_however_many_tokens_there_are(seed):
    counts = np.random.default_rng(seed).integers(1, 5, 60)
    p5, p50, p95 = np.percentile(np.repeat(np.arange(60), counts), [5, 50, 95])
    _, few_and_many = panels(2, 4, 3)
    for axes, times in zip(few_and_many, (1, 10**12), strict=True):
        draw_l0_histogram(axes, counts * times, "text")
    spread, median, _ = [text.get_text() for text in few_and_many[0].get_legend().get_texts()]
    assert (spread, median) == (f"p5 to p95: {p5:.0f} to {p95:.0f}", f"median {p50:.0f}")


def test_l0_histogram_names_mean_median_and_what_was_counted():
    _, (axes,) = panels(1, 4, 3)
    draw_l0_histogram(axes, [0, 1, 2, 1], "images of CIFAR-10", "images")
    assert axes.get_title(loc="left") == "images of CIFAR-10"
    assert axes.get_xlabel() == "L0  (4 images)"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["p5 to p95: 1 to 3", "median 2", "mean 2.0"]


def test_log_axes_have_plain_numbers():
    figure, (axes,) = panels(1, 4, 3)
    axes.plot([8, 64], [1, 2])
    log_scale(axes, "x", base=2)
    figure.draw_without_rendering()
    assert {"8", "16", "32", "64"} <= {label.get_text() for label in axes.get_xticklabels()}
