import dataclasses

import numpy as np
import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import method_grid

from .helpers import attribution, board, images, random, texts


def test_each_map_is_shown_as_parts_of_its_own_largest_value():
    first = images(3)
    second = dataclasses.replace(first, values=1000 * first.values.abs(), signed=False, method="occlusion")
    plot = method_grid([first, second], which=[2, 0], clip=100)
    expected = torch.stack([first.values[[2, 0]].sum(dim=1), 1000 * first.values[[2, 0]].abs().sum(dim=1)], dim=1)
    expected = expected / expected.abs().amax(dim=(2, 3), keepdim=True)
    np.testing.assert_allclose(plot.data["maps"], expected.numpy(), rtol=1e-5)
    picture, one, other, *_ = plot.axes
    assert len(plot.axes) == 6 and picture.images[0].get_array().shape == (12, 12, 3)
    assert one.images[-1].get_clim() == other.images[-1].get_clim() == (-1, 1)
    assert [axes.get_ylabel() for axes in plot.axes[::3]] == ["class 7\nscore 1.5", "class 7\nscore 0.5"]


def test_magnitudes_alone_start_at_zero():
    plot = method_grid([images(signed=False)])
    assert plot.axes[1].images[-1].get_clim() == (0, 1)


def test_large_maps_are_averaged_over_blocks_and_not_thinned_out():
    maps = attribution(1, 8, 12)
    plot = method_grid([maps], places=6, clip=100)
    blocks = maps.values.reshape(1, 4, 2, 6, 2).mean(dim=(2, 4)).double()
    np.testing.assert_allclose(plot.data["maps"][0], (blocks / blocks.abs().max()).numpy(), rtol=1e-6)
    assert method_grid([maps], clip=100).data["maps"].shape == (1, 1, 8, 12)


def test_a_picture_below_lies_where_its_averaged_map_does():
    plot = method_grid([images(1, 24)], places=8, overlay=True)
    below, above = plot.axes[1].images
    assert below.get_array().shape == (24, 24) and above.get_array().shape == (8, 8)
    assert below.get_extent() == above.get_extent()


@pytest.mark.parametrize("higher, ahead", [(True, max), (False, min)])
def test_numbers_of_a_board_stand_below_and_the_best_of_each_row_is_bold(higher, ahead):
    own = board(3, 2, metrics=("insertion", "road"), higher=(not higher, higher), names=("a", "b", "c"))
    maps = {name: images(method=name) for name in ("c", "a")}
    plot = method_grid(maps, board=own, metric="road", which=[1])
    found = {axes.get_xlabel(): axes.xaxis.label.get_fontweight() for axes in plot.axes[1:]}
    values = [float(own.of(name, "road")[1]) for name in ("c", "a")]
    assert list(found) == [f"{value:.2f}".replace("-", "−") for value in values]
    assert [weight == "bold" for weight in found.values()] == [value == ahead(values) for value in values]
    assert any(text.startswith("ROAD below each map") for text in texts(plot))


def test_the_best_in_bold_is_among_the_methods_drawn():
    own = board(3, 2, names=("a", "b", "c"))
    plot = method_grid({"c": images()}, board=own)
    assert {axes.xaxis.label.get_fontweight() for axes in plot.axes[1::2]} == {"normal"}


def test_maps_without_their_picture_stand_alone():
    plot = method_grid([dataclasses.replace(images(), inputs=None)] * 2, labels=["one", "two"])
    assert len(plot.axes) == 4 and plot.axes[0].get_ylabel() == "one" and plot.axes[1].get_ylabel() == ""


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        ([], {}, PlotError, "nothing to draw"),
        ([3], {}, PlotError, "not a int"),
        ([images()], {"which": []}, PlotError, "draws nothing"),
        ([images()], {"which": [2]}, OptionError, "holds 2"),
        ([images()], {"labels": ["a"]}, PlotError, "1 labels for 2 rows"),
        ([images()], {"places": 0}, OptionError, "places"),
        ([attribution(1, 5, tokens=[list("abcde")])], {}, PlotError, "method_grid shows maps over images"),
        ([images(), images(inputs=random(2, 3, 12, 12))], {}, PlotError, "different inputs"),
        ({"a": images()}, {"board": board()}, OptionError, "method of the board 'a'"),
        ({"method 1": images()}, {"board": board()}, PlotError, "of 8 sample.*of 2"),
        ({"method 1": images()}, {"board": board(samples=2), "metric": "road"}, OptionError, "metric 'road'"),
        ({"method 1": images()}, {"board": 3}, PlotError, "board= takes a Leaderboard"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        method_grid(given, **options)
