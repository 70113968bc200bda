import dataclasses
import itertools

import numpy as np
import pytest
import torch
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.image import PcolorImage

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import channels

from .helpers import maps, texts


def shown(plot):
    """The tiles as they stand in the picture: `(unit, height, width)`, read back through the outlines."""
    (axes,) = plot.axes
    (image,) = (one for one in axes.images if isinstance(one, PcolorImage))
    (outlines,) = (one for one in axes.collections if isinstance(one, PatchCollection))
    cells = np.asarray(image.get_array().filled(np.nan))
    tiles = []
    for box in (path.get_extents() for path in outlines.get_paths()):
        across = (image._Ax[:-1] + image._Ax[1:]) / 2
        down = (image._Ay[:-1] + image._Ay[1:]) / 2
        rows, columns = (down > box.y0) & (down < box.y1), (across > box.x0) & (across < box.x1)
        tiles.append(cells[np.ix_(rows, columns)])
    return tiles


@pytest.mark.parametrize("shape", [(1, 11, 6, 4), (1, 11, 9), (1, 11), (1, 1, 5, 5)])
def test_every_unit_lies_in_its_outline_and_nothing_between(shape):
    one = maps(*shape)
    plot = channels(one)
    expected = one.values[0].reshape(
        shape[1], *((1, 1) if len(shape) == 2 else (1, -1) if len(shape) == 3 else shape[2:])
    )
    tiles = shown(plot)
    assert len(tiles) == shape[1]
    for tile, values in zip(tiles, expected.numpy(), strict=True):
        assert np.array_equal(tile, values.astype(tile.dtype))
    filled = plot.axes[0].images[0].get_array()
    assert int((~np.ma.getmaskarray(filled)).sum()) == expected.numel()
    assert plot.data["units"].tolist() == list(range(shape[1]))


def test_the_strongest_are_those_with_the_largest_mean_of_the_sample():
    one = maps(2, 30, 5, 5)
    means = one.values[1].mean(dim=(1, 2))
    best = means.argsort(descending=True)[:7].tolist()
    first = channels(one, 1, count=7, order="strength")
    assert first.data["units"].tolist() == best and str(best[0]) in texts(first)
    assert channels(one, 1, count=7).data["units"].tolist() == sorted(best)
    assert "sample 1 of 2: blocks.0: the 7 strongest of 30 units, strongest first" in texts(first)
    assert np.array_equal(first.data["tiles"], one.values[1][best].numpy())


def test_numbers_are_those_of_the_units_and_stand_over_their_tiles():
    one = dataclasses.replace(maps(1, 5, 4, 4), units=(3, 10, 11, 60, 1279))
    plot = channels(one)
    assert [artist.get_text() for artist in plot.axes[0].texts] == ["3", "10", "11", "60", "1279"]
    named = channels(one, labels=["a", "b", "c", "d", "e"], count=2)
    assert set(texts(named)) >= {
        "abcde"[row] for row in sorted(one.values[0].mean(dim=(1, 2)).topk(2).indices.tolist())
    }


def test_rows_of_very_many_tiles_are_named_by_their_first_unit():
    plot = channels(maps(1, 1280, 3, 3))
    (axes,) = plot.axes
    assert not axes.texts and plot.fig.get_size_inches()[1] < 9
    named = [int(label.get_text()) for label in axes.get_yticklabels()]
    assert named[0] == 0 and len({right - left for left, right in itertools.pairwise(named)}) == 1


def test_all_tiles_share_one_scale():
    plot = channels(maps(1, 12, 4, 4), vmax=2)
    assert plot.axes[0].images[0].get_clim() == (-2, 2) and "RdBu_r" in plot.axes[0].images[0].get_cmap().name
    unsigned = dataclasses.replace(maps(1, 12, 4, 4), values=torch.rand(1, 12, 4, 4))
    assert channels(unsigned, clip=100).axes[0].images[0].get_clim() == (0, pytest.approx(float(unsigned.values.max())))


def test_tiles_keep_the_shape_of_the_maps():
    plot = channels(maps(1, 6, 10, 20), columns=3)
    (outlines,) = (one for one in plot.axes[0].collections if isinstance(one, PatchCollection))
    axes = plot.axes[0]
    box = outlines.get_paths()[0].get_extents().transformed(axes.transData)
    assert abs(box.height) / box.width == pytest.approx(0.5, rel=0.05)
    assert len({round(path.get_extents().x0, 6) for path in outlines.get_paths()}) == 3


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        (torch.ones(1, 3, 4, 4), {}, PlotError, "draws ActivationMaps, not a Tensor"),
        (maps(1, 2, 3, 3, 3), {}, PlotError, r"has shape \(1, 2, 3, 3, 3\); tiles show .*Take a slice"),
        (maps(1, 3, 4, 4), {"count": 0}, OptionError, "count=0 units"),
        (maps(1, 3, 4, 4), {"columns": 0}, OptionError, "columns=0; give 1 or more"),
        (maps(1, 3, 4, 4), {"order": "size"}, OptionError, "unknown order 'size'"),
        (maps(1, 3, 4, 4), {"sample": 1}, OptionError, "sample=1, but the activation of layer 'blocks.0' holds 1"),
        (maps(1, 3, 4, 4), {"labels": ["a"]}, PlotError, "1 labels for the 3 units of 'blocks.0'"),
        (maps(1, 300, 4, 4), {"columns": 300}, PlotError, "300 tiles in a row of .* fewer columns="),
        (maps(1, 300, 4, 4), {"ax": Figure(figsize=(2, 1)).add_subplot()}, PlotError, "300 tiles do not fit into axes"),
        (dataclasses.replace(maps(1, 3, 4, 4), values=torch.zeros(1, 3, 4, 4)), {}, PlotError, "is zero everywhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        channels(given, **options)
