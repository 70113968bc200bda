import dataclasses

import numpy as np
import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import feature_gallery, feature_visualization, top_inputs

from .helpers import made, maps, texts, top_inputs as tops

TARGETS = ("unit 2 of blocks.0", "unit 0 of blocks.0")


def test_a_row_per_unit_with_what_was_made_for_it_before_what_it_responds_to():
    pictures, top = made(2, 3, 6, 6, targets=TARGETS), tops(3, 4)
    plot = feature_gallery(pictures, top, count=2)
    shown = list(plot.data)
    assert shown[:3] == ["unit 2, made", *(f"unit 2, sample {int(index)}" for index in top.index[2, :2])]
    assert [text for text in texts(plot) if text.startswith("unit ")] == ["unit 2", "unit 0"]
    of_made = feature_visualization(pictures).data
    np.testing.assert_array_equal(plot.data["unit 2, made"], of_made[TARGETS[0]])
    np.testing.assert_array_equal(plot.data["unit 0, made"], of_made[TARGETS[1]])
    for name, value in top_inputs(top, units=[2, 0], count=2, show="crop").data.items():
        np.testing.assert_array_equal(plot.data[name], value)
    assert plot.axes[0].get_title().startswith("made: ") and len(plot.axes) == 6


def test_the_best_of_several_copies_is_drawn():
    pictures = dataclasses.replace(made(3, 1, 6, 6, targets=TARGETS[:1] * 3), score=torch.tensor([1.0, 3.0, 2.0]))
    plot = feature_gallery(pictures, tops(3, 2))
    np.testing.assert_array_equal(plot.data["unit 2, made"], pictures.pictures()[1, 0].numpy())
    assert plot.axes[0].get_title() == "made: 3"


def test_targets_with_other_names_are_given_their_units():
    pictures = made(2, 3, 6, 6, targets=("a direction", "another"))
    assert "unit 1, made" in feature_gallery(pictures, tops(3, 2), units=[1, 0]).data
    at = made(1, 3, 6, 6, targets=("unit 1 of blocks.0 at (2, 3)",))
    assert next(iter(feature_gallery(at, tops(3, 2)).data)) == "unit 1, made"


@pytest.mark.parametrize(
    "pictures, top, options, error, expected",
    [
        (made(2, 3, 6, 6), tops(3, 2), {}, PlotError, r"'class 0' is not a unit of layer 'blocks.0'.*neuron.*units="),
        (made(1, 3, 6, 6, targets=("unit 1 of blocks.1",)), tops(3, 2), {}, PlotError, "'unit 1 of blocks.1' is no"),
        (made(2, 3, 6, 6), tops(3, 2), {"units": [1]}, PlotError, r"1 units for 2 targets \(class 0, class 1\)"),
        (made(1, 3, 6, 6), tops(3, 2), {"units": [9]}, OptionError, "unit 9"),
        (made(1, 3, 6, 6, targets=TARGETS[:1]), tops(3, 2), {"labels": ["a", "b"]}, PlotError, "2 labels for 1 units"),
        (made(1, 3, 6, 6, targets=TARGETS[:1]), tops(3, 2), {"count": 0}, OptionError, "count=0"),
        (made(1, 3, 6, 6, targets=TARGETS[:1]), tops(3, 2, regions=False), {}, PlotError, "needs regions"),
        (made(1, 8, 4, axes=("batch", "time", "feature")), tops(3, 2), {}, PlotError, "shows images"),
        (tops(3, 2), made(1, 3, 6, 6), {}, PlotError, "not a TopInputs and a FeatureVisualization"),
        (maps(1, 3, 6, 6), tops(3, 2), {}, PlotError, "not a ActivationMaps"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(pictures, top, options, error, expected):
    with pytest.raises(error, match=expected):
        feature_gallery(pictures, top, **options)
