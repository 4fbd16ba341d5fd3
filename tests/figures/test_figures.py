"""What the figures draw, read from their artists."""

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from PIL import Image

from sae_lens_sparsemax.figures import (
    ComparedSAE,
    activation_spikes,
    comparison_strip,
    image_concept_card,
    patch_mask,
    text_concept_card,
)
from sae_lens_sparsemax.figures.shaded_text import shown
from sae_lens_sparsemax.figures.spikes import _spread


def acts(d_sae: int = 200, **values: float) -> torch.Tensor:
    vector = torch.zeros(d_sae)
    for concept, value in values.items():
        vector[int(concept[1:])] = value
    return vector


def spikes(axes) -> dict[int, float]:
    """Concept and height of each spike drawn."""
    lines = [c for c in axes.collections if isinstance(c, LineCollection)]
    return {int(x): float(y) for c in lines for (x, _), (_, y) in c.get_segments()}


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


def shades(axes) -> np.ndarray:
    """Opacity of the dark layer over the photo, (height, width)."""
    return np.asarray(axes.images[1].get_array())[..., 3]


def boxes_of_labels(figure):
    figure.canvas.draw()
    labels = [text for text in figure.axes[0].texts if text.get_visible()]
    return labels, [label.get_window_extent() for label in labels]


def test_every_active_concept_is_a_spike_and_the_largest_are_labelled():
    figure = activation_spikes(acts(c3=2.0, c50=-4.0, c51=1.0, c199=0.5), 2, names={50: "sky"}, title="cat")
    (axes,) = figure.axes
    assert spikes(axes) == {3: 2.0, 50: -4.0, 51: 1.0, 199: 0.5}
    assert sorted(axes.lines[0].get_xdata()) == [3, 50]
    assert [text.get_text() for text in axes.texts] == ["3", "50 sky?"]
    assert axes.get_title(loc="left") == "cat: 4 of 200 concepts active"


def test_labels_of_neighbours_stay_apart_and_inside_the_figure():
    near = {f"c{i}": 1.0 + i / 100 for i in (90, 91, 92, 93, 199)}
    figure = activation_spikes(acts(**near), 5, names={199: "a rather long name of a concept"})
    labels, boxes = boxes_of_labels(figure)
    starts = [label.get_position()[0] for label in labels]
    assert len(starts) == 5 and min(np.diff(sorted(starts))) >= 0.04
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)


def test_spread_keeps_order_and_distance():
    places = _spread(np.array([0.1, 0.11, 0.5, 0.99, 1.0]), 0.1)
    assert (np.diff(places) >= 0.1 - 1e-9).all() and places[-1] <= 1
    assert np.allclose(_spread(np.linspace(0.4, 0.41, 30), 0.1), np.linspace(0, 1, 30))


def test_no_active_concept_is_said():
    assert "No concept is active here." in texts(activation_spikes(acts()))
    assert not spikes(activation_spikes(acts()).axes[0])


def test_activations_of_another_shape_or_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"of one dimension, got \(2, 3\)"):
        activation_spikes(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="must be finite everywhere"):
        activation_spikes(acts(c1=float("nan")))
    for given in (None, ["strong"], {1: 2.0}):
        with pytest.raises(ValueError, match="feature_acts must be a tensor, an array or a list of numbers"):
            activation_spikes(given)


@pytest.mark.parametrize("card", [image_concept_card, text_concept_card])
def test_a_card_of_given_examples_needs_their_activations(card):
    given = [[Image.new("RGB", (4, 4))], [np.ones((4, 4))]] if card is image_concept_card else [[([" a"], [1.0])]]
    with pytest.raises(ValueError, match="activations must be a tensor, an array or a list of numbers, got None"):
        card(3, *given)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_a_stripe_of_one_pixel_has_a_mask(shape):
    mask = np.linspace(0, 1, 40)[: shape[0] * shape[1]].reshape(shape)
    figure = patch_mask(Image.new("RGB", shape[::-1]), mask)
    assert shades(figure.axes[0]).shape == shape
    figure.canvas.draw()


def test_the_mask_darkens_the_photo_in_place():
    image, mask = Image.new("RGB", (40, 20), "white"), np.zeros((20, 40))
    mask[5:10, 30:40], mask[0:5, 0:10] = 2.0, -1.0
    dark = shades(patch_mask(image, mask).axes[0])
    assert dark.shape == (20, 40)
    assert (dark[5:10, 30:40] == 0).all() and dark[15, 5] == dark.max() > 0.5
    assert dark[2, 2] == pytest.approx(dark.max() / 2)
    brighter = shades(patch_mask(image, mask, max_value=4.0).axes[0])
    assert brighter[7, 35] == pytest.approx(dark.max() / 2)


def test_a_mask_of_another_size_or_without_a_patch_is_told():
    with pytest.raises(ValueError, match=r"mask must be of the image\'s shape \(20, 40\)"):
        patch_mask(Image.new("RGB", (40, 20)), np.zeros((40, 20)))
    assert patch_mask(Image.new("RGB", (40, 20)), np.zeros((20, 40)), title="7").axes[0].get_title() == "7: on no patch"


def test_the_card_of_an_image_concept_shows_images_histogram_and_classes():
    images = [Image.new("RGB", (30, 20)), Image.new("RGB", (20, 30))]
    masks = [np.full((20, 30), 2.0), np.full((30, 20), 1.0)]
    figure = image_concept_card(
        7, images, masks, torch.tensor([2.0, 1.0, 0.0, 1.5]), n_seen=10, class_counts={"dog": 1, "cat": 3}, name="pet"
    )
    pictures = [axes for axes in figure.axes if len(axes.images) == 2]
    assert [float(shades(axes).max()) for axes in pictures] == [0, pytest.approx(0.35)]  # one scale for all
    histogram, classes = figure.axes[-2:]
    assert sum(bar.get_height() for bar in histogram.patches) == 3
    assert [label.get_text() for label in classes.get_yticklabels()] == ["cat", "dog"]
    assert [bar.get_width() for bar in classes.patches] == [3, 1]
    assert "Concept 7 pet? (the name is a guess)\nactive on 3 of 10 (30.00%), at most 2" in texts(figure)


def test_the_card_of_a_text_concept_shades_each_token_by_its_activation():
    contexts = [([" the", " $sea$", "\n"], torch.tensor([0.0, 4.0, 1.0])), ([" a"], torch.tensor([2.0]))]
    figure = text_concept_card(
        3, contexts, [4.0, 1.0, 2.0], n_seen=50, promoted=[(" ship", 2.0)], suppressed=[(" land", -1.0)]
    )
    first, second = figure.axes[:2]
    assert [text.get_text() for text in first.texts] == [" the", " $sea$", "↵"]
    grounds = {int(p.get_x()): p for p in first.patches if isinstance(p, Rectangle)}
    assert sorted(grounds) == [4, 10] and [p.get_width() for _, p in sorted(grounds.items())] == [6, 1]
    assert sum(grounds[4].get_facecolor()[:3]) < sum(second.patches[0].get_facecolor()[:3])
    assert sum(second.patches[0].get_facecolor()[:3]) < sum(grounds[10].get_facecolor()[:3])
    assert {"‹ ship›", "‹ land›", "Promotes", "Suppresses"} <= set(texts(figure))
    figure.canvas.draw()


def test_a_long_text_is_cut_to_the_lines_around_its_peak():
    tokens = [f" {i:04d}" for i in range(400)]
    values = torch.zeros(400)
    values[333] = 1.0
    axes = text_concept_card(3, [(tokens, values)], [1.0]).axes[0]
    shown_tokens = [text.get_text() for text in axes.texts]
    assert " 0333" in shown_tokens and " 0000" not in shown_tokens and len(shown_tokens) < 80


@pytest.mark.parametrize("card", [image_concept_card, text_concept_card])
def test_a_dead_concept_has_a_card_that_says_so(card):
    figure = card(5, [], [], [], n_seen=9) if card is image_concept_card else card(5, [], torch.zeros(4), n_seen=9)
    assert "This concept is dead: it was active nowhere among the 9 it was looked for in." in texts(figure)
    figure.canvas.draw()


def test_hostile_and_unknown_characters_are_drawn_as_something():
    assert shown("\u200b") == "□" and shown("") == "∅" and shown("a\tb\n") == "a→b↵" and shown("日") == "□"


def test_a_comparison_has_a_row_for_each_sae():
    image = Image.new("RGB", (30, 20), "white")
    mask = np.zeros((20, 30))
    mask[:10] = 1
    rows = [
        ComparedSAE("BatchTopK", acts(c1=1.0, c9=2.0), {9: mask}),
        ComparedSAE("sparsemax", acts(c4=3.0), {4: mask}),
    ]
    figure = comparison_strip(image, rows)
    plots = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [spikes(axes) for axes in plots] == [{1: 1.0, 9: 2.0}, {4: 3.0}]
    assert [axes.get_title() for axes in figure.axes if len(axes.images) == 2] == ["9", "4"]
    with pytest.raises(ValueError, match="at least one SAE"):
        comparison_strip(image, [])
    figure.canvas.draw()
