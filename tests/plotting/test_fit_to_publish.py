"""What a reader of a paper looks at: narrow columns, many places, text at every resolution."""

import dataclasses

import matplotlib
import numpy as np
import pytest
import torch

from layerlens import plotting
from layerlens.plotting import style
from layerlens.plotting.drawing import images as pictures
from layerlens.results import AttentionWeights, Matrix

from .helpers import PATHS, attention, attribution, images, ledger, maps, profile, text_outside, texts


def rows_and_columns(plot):
    """How many panels stand below and beside each other."""
    corners = [axes.get_position() for axes in plot.axes]
    return tuple(len({round(float(corner), 3) for corner in ends}) for ends in
                 ([box.y0 for box in corners], [box.x0 for box in corners]))  # fmt: skip


@pytest.mark.parametrize("dpi", [72, 130])
def test_text_is_as_wide_at_every_resolution(dpi):
    plot = plotting.relevance_flow(ledger(30), width="page")
    plot.fig.set_dpi(dpi)
    with matplotlib.rc_context(style.RC):  # as it is saved
        assert text_outside(plot) == []


@pytest.mark.slow
def test_a_column_holds_fewer_panels_in_a_row():
    five = [images(method=f"method {index}") for index in range(5)]
    assert [rows_and_columns(plotting.compare_methods(five, width=wide)) for wide in ("column", "page")] == [
        (2, 3), (2, 3)
    ]  # fmt: skip
    assert rows_and_columns(plotting.compare_methods(five[:4], width="page")) == (1, 5)
    grids = [plotting.overlay_grid(images(3), width=wide) for wide in ("column", "page")]
    assert [rows_and_columns(plot) for plot in grids] == [(3, 2), (1, 6)]
    heads = attention(layers=2, heads=9)
    assert rows_and_columns(plotting.attention(heads, width="column")) == (4, 5)
    assert rows_and_columns(plotting.attention(heads)) == (2, 9)


def test_one_attention_map_is_as_wide_as_a_column_and_names_its_axes():
    plot = plotting.attention(attention(layers=1, heads=4), 0, heads="mean", labels=["Ġa", "##b", "c", "d", "e", "f"])
    (axes,) = plot.axes
    assert plot.fig.get_size_inches()[0] == 3.25 and (axes.get_ylabel(), axes.get_xlabel()) == ("query", "key")
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["␣a", "##b", "c"]
    assert "down: queries, across: keys" in texts(plotting.attention(attention()))


def test_units_in_narrow_tiles_have_bare_numbers():
    one = maps(1, 120, 4, 4)
    wide, narrow = (plotting.activation_mosaic(one, count=8, width=width) for width in ("page", "column"))
    units = next(value for name, value in narrow.data.items() if name.startswith("units "))
    assert [axes.get_title() for axes in narrow.axes] == [str(unit) for unit in units.tolist()]
    assert all(axes.get_title().startswith("unit ") for axes in wide.axes)
    assert "each row: clipped at 99.5% of its |activation|" in texts(wide)


@pytest.mark.slow
def test_the_middle_number_gives_way_below_a_narrow_map_and_the_ends_stay_inside():
    small = dataclasses.replace(images(), values=1.234e-7 * images().values)
    plots = [
        plotting.compare_methods([small] * 4, columns=2, labels=list("abcd"), width=width) for width in (1.7, "page")
    ]
    shown = []
    for plot in plots:
        bars = [axes for axes in plot.fig.findobj(matplotlib.axes.Axes) if axes not in plot.axes]
        labels = [tick.label1 for tick in bars[0].xaxis.get_major_ticks()]
        shown.append([label.get_visible() for label in labels])
        assert (labels[0].get_ha(), labels[-1].get_ha()) == ("left", "right")
    assert shown == [[True, False, True], [True, True, True]]


@pytest.mark.slow
def test_a_map_of_very_many_pixels_is_the_mean_of_blocks():
    shape = (1500, 2003)
    x = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(1))
    one = attribution(1, *shape, inputs=x)
    plot = plotting.heatmap(one, width=2)
    blocks = one.values[0, :1500, :2001].reshape(500, 3, 667, 3).mean(dim=(1, 3)).numpy()
    np.testing.assert_allclose(plot.data["values"][:, :667], blocks, atol=1e-5)
    assert plot.data["values"].shape == (500, 668) and plot.data["picture"].shape == (500, 668, 3)
    assert "each dot: the mean of 3 x 3 pixels" in texts(plot)
    assert plot.axes[0].images[-1].get_clim()[1] == pytest.approx(np.percentile(abs(plot.data["values"]), 99.5))
    for draw, given in ((plotting.overlay_grid, one), (plotting.compare_methods, [one])):
        assert any(line.startswith("each dot: the mean of ") for line in texts(draw(given, width="column")))
    assert not any("each dot" in line for line in texts(plotting.heatmap(images(size=224))))


def test_blocks_at_the_edge_are_means_of_what_is_there():
    array = np.arange(15.0).reshape(3, 5)
    expected = [[array[:2, :2].mean(), array[:2, 2:4].mean(), array[:2, 4:].mean()],
                [array[2:, :2].mean(), array[2:, 2:4].mean(), array[2:, 4:].mean()]]  # fmt: skip
    np.testing.assert_allclose(pictures.averaged(array, 2), expected)


def test_attention_of_very_many_tokens_is_the_largest_weight_of_blocks():
    given = torch.zeros(1, 1, 2000, 2000)
    given[0, 0, 999, 3] = 1.0  # a single weight must not be lost between dots
    plot = plotting.attention(AttentionWeights("Net", {"a": given}, {"a": "softmax"}), clip=100)
    drawn = plot.axes[0].images[0].get_array()
    assert drawn.shape == (667, 667) and np.argwhere(drawn).tolist() == [[333, 1]]
    assert "each dot: the largest weight among 3 x 3 tokens" in texts(plot)
    assert plot.data["a"].shape == (1, 2000, 2000) and plot.axes[0].get_xlim() == (-0.5, 1999.5)


@pytest.mark.slow
def test_rows_without_a_name_are_told():
    many = profile(66)
    plot = plotting.layer_profile(many, labels=[f"{name} with a name of two lines, {'x' * 60}" for name in PATHS])
    named = len(plot.axes[0].get_yticks())
    assert named < 66 and f"one name for {-(-66 // named)} layers" in texts(plot)
    assert not any("one name for" in line for line in texts(plotting.layer_profile(profile(20))))


def test_a_log_axis_of_two_decades_names_more_than_powers_of_ten():
    few, many = profile(3), profile(3)
    few.values[:], many.values[:] = torch.tensor([1.0, 4, 30]), torch.tensor([1e-3, 4, 3e4])
    ticks = [plotting.layer_profile(one, scale="log").axes[0].get_xticks() for one in (few, many)]
    assert {1, 2, 5, 10, 20} <= set(ticks[0]) and set(np.log10(ticks[1]) % 1) == {0}


def test_cells_have_no_negative_zero_and_tokens_no_marks_of_the_tokenizer():
    cells = Matrix("effect", ("a",), ("b", "c"), torch.tensor([[-1e-4, 1.0]]), ("row", "column"), "1", True, "x", {})
    written = texts(plotting.matrix(cells))
    assert "0.00" in written and "−0.00" not in written
    bars = plotting.heatmap(attribution(1, 3, tokens=[["The", "Ġcapital", "##s"]])).axes[0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["The", "␣capital", "##s"]


@pytest.mark.slow
def test_signs_are_apart_for_a_reader_who_does_not_see_red_and_green():
    from benchmarks.figures import deuteranopia, gray

    def apart(name, see):
        first, last = see(matplotlib.colormaps[name]([0.02, 0.98])[:, :3])
        return 255 * float(np.linalg.norm(first - last))

    assert apart(style.SIGNED, deuteranopia) > 80 > 60 > apart("RdYlGn", deuteranopia)
    assert apart(style.SIGNED, gray) < 10 and apart("cividis", gray) > 200  # what the page on figures says
    white = deuteranopia(np.ones((1, 3)))
    assert white == pytest.approx(np.ones((1, 3)), abs=1e-3)
