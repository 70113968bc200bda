import dataclasses

import numpy as np
import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import activation_mosaic

from .helpers import maps, random, texts


def test_the_strongest_units_of_the_sample_are_tiles_on_one_scale():
    one = maps(2, 8, 5, 5)
    one = dataclasses.replace(one, units=tuple(range(100, 108)))
    plot = activation_mosaic(one, 1, count=3, clip=100)
    order = one.values[1].mean(dim=(1, 2)).argsort(descending=True)[:3]
    (label, units), tiles = list(plot.data), plot.data["blocks.0: 3 of 8 units, 5 x 5"]
    assert label == "blocks.0: 3 of 8 units, 5 x 5" and plot.data[units].tolist() == (order + 100).tolist()
    np.testing.assert_array_equal(tiles, one.values[1][order].numpy())
    for axes, tile in zip(plot.axes, tiles, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), tile)
    assert len({axes.images[0].get_clim() for axes in plot.axes}) == 1
    assert [axes.get_title() for axes in plot.axes] == [f"unit {unit + 100}" for unit in order.tolist()]


def test_rows_have_their_own_scale_and_map():
    low = maps(1, 4, 5, 5)
    high = dataclasses.replace(low, layer="blocks.1", values=100 * low.values.abs())
    plot = activation_mosaic([low, high], clip=100)
    first, second = plot.axes[0].images[0], plot.axes[4].images[0]
    assert first.get_cmap().name == "RdBu_r" and first.get_clim()[0] == -first.get_clim()[1]
    assert second.get_cmap().name == "viridis" and second.get_clim()[0] == 0
    assert second.get_clim()[1] == pytest.approx(100 * first.get_clim()[1])


def test_the_input_begins_a_row_unless_it_is_left_out():
    one = maps(1, 4, 5, 5, inputs=random(1, 3, 9, 9))
    assert activation_mosaic(one).axes[0].get_title() == "input"
    assert activation_mosaic(one, picture=False).axes[0].get_title().startswith("unit")


def test_tokens_are_columns_and_dense_units_are_bars():
    tokens = maps(1, 7, 20, axes=("batch", "unit", "token"))
    dense = maps(1, 7, layer="head")
    plot = activation_mosaic([tokens, dense], count=4)
    steps, bars = plot.axes
    assert steps.images[0].get_array().shape == (4, 20) and steps.get_xlabel() == "token"
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(plot.data["head: 4 of 7 units"].tolist())


def test_a_second_call_is_named():
    assert "blocks.0 #1: 3 of 3 units, 4 x 4" in texts(activation_mosaic(dataclasses.replace(maps(1, 3, 4, 4), call=1)))


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        ([], {}, PlotError, "the list of activation maps is empty"),
        ([torch.ones(1, 3, 4, 4)], {}, PlotError, "draws ActivationMaps, not a Tensor"),
        (maps(1, 2, 3, 3, 3), {}, PlotError, r"has shape \(1, 2, 3, 3, 3\); a mosaic shows .*Take a slice"),
        (maps(1, 3, 4, 4), {"count": 0}, OptionError, "count=0 units"),
        (maps(1, 3, 4, 4), {"sample": 1}, OptionError, r"sample=1, but the activation of layer 'blocks.0' holds 1"),
        (maps(1, 3, 4, 4), {"labels": []}, PlotError, "0 labels for 1 layers"),
        (
            dataclasses.replace(maps(1, 3, 4, 4), values=torch.zeros(1, 3, 4, 4)),
            {},
            PlotError,
            "layer 'blocks.0' is zero every",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        activation_mosaic(given, **options)
