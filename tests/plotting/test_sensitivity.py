import dataclasses

import numpy as np
import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import sensitivity

from .helpers import profile, random, ranking, texts


def dots(axes):
    """The marks of values, a table of (x, y) for each series."""
    return [
        np.ma.getdata(one.get_offsets())
        for one in axes.collections
        if hasattr(one, "get_offsets") and one.get_zorder() == 3
    ]


def spans(axes):
    """The ends of the thin lines of intervals, in the order drawn."""
    lines = [one for one in axes.collections if hasattr(one, "get_segments") and one.get_linewidth()[0] == 0.9]
    return [np.array([segment[:, 0] for segment in one.get_segments()]) for one in lines]


@pytest.mark.parametrize("signed", [True, False])
def test_the_largest_is_at_the_top_by_size_when_signed(signed):
    given = ranking(50, signed=signed)
    plot = sensitivity(given, count=12)
    (axes,) = plot.axes
    expected = given.ranked()[:12]
    assert plot.data["items"] == [item for item, _ in expected]
    (drawn,) = dots(axes)
    assert drawn[:, 0].tolist() == pytest.approx([value for _, value in expected])
    assert drawn[:, 1].tolist() == list(range(12)) and axes.yaxis_inverted()
    assert [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()] == plot.data["items"]


def test_what_is_left_out_is_told():
    given = ranking(50, signed=True)
    rest = given.ranked()[20][1]
    assert f"+ 30 more, largest {rest:.3g}".replace("-", "−") in texts(sensitivity(given))
    assert not [one for one in texts(sensitivity(given, count=None)) if "more" in one]
    assert len(sensitivity(given, count=49).data["items"]) == 50  # a row that tells of one takes the place of that one
    missing = dataclasses.replace(given, values=given.values.index_fill(0, torch.tensor([4, 9]), torch.nan))
    assert any("2 without a number" in one for one in texts(sensitivity(missing)))


def test_intervals_are_drawn_where_known_else_standard_errors_and_the_key_says_which():
    given = ranking(6, interval=True)
    plot = sensitivity(given)
    order = [given.items.index(item) for item in plot.data["items"]]
    np.testing.assert_allclose(spans(plot.axes[0])[0], given.interval[order].numpy())
    assert "95 % interval" in texts(plot) and "±1 standard error" not in texts(plot)
    plot = sensitivity(dataclasses.replace(given, interval=None))
    low, high = (given.values + sign * given.error for sign in (-1, 1))
    np.testing.assert_allclose(spans(plot.axes[0])[0], torch.stack([low, high], dim=1)[order].numpy(), rtol=1e-6)
    assert "±1 standard error" in texts(plot) and "95 % interval" not in texts(plot)
    bare = sensitivity(dataclasses.replace(given, interval=None, error=None, null=None))
    assert bare.axes[0].get_legend() is None and spans(bare.axes[0]) == []


def test_chance_is_one_line_where_it_is_the_same_and_else_a_mark_per_item():
    given = ranking(6)
    assert sensitivity(given).data["null"].shape == (6, 1)
    marks = [
        np.ma.getdata(one.get_offsets())[:, 0]
        for one in sensitivity(given).axes[0].collections
        if one.get_zorder() == 2.8
    ]
    order = [given.items.index(item) for item, _ in given.ranked()]
    np.testing.assert_allclose(marks[0], given.null[order].numpy())
    even = sensitivity(dataclasses.replace(given, null=torch.full((6,), 0.25)))
    lines = [line for line in even.axes[0].lines if line.get_zorder() == 2.5]
    assert [line.get_xdata() for line in lines] == [[0.25, 0.25]]
    assert texts(even).count("chance") == 1


def test_several_series_share_rows_in_order_of_the_largest():
    given = ranking(8, ("first order", "total order"), interval=True)
    plot = sensitivity(given)
    best = given.values.max(dim=1).values.argsort(descending=True)
    assert plot.data["items"] == [given.items[row] for row in best]
    first, second = dots(plot.axes[0])
    np.testing.assert_allclose(first[:, 0], given.values[best, 0].numpy())
    np.testing.assert_allclose(second[:, 0], given.values[best, 1].numpy())
    assert (first[:, 1] < np.arange(8)).all() and (second[:, 1] > np.arange(8)).all()
    assert {"first order", "total order", "95 % interval"} <= set(texts(plot))
    marks = [one for one in plot.axes[0].collections if one.get_zorder() == 3]
    assert not np.array_equal(marks[0].get_facecolor(), marks[1].get_facecolor())


@pytest.mark.parametrize("series", ["total order", 1, ["total order"], -1])
def test_one_series_is_chosen_by_name_or_number(series):
    given = ranking(8, ("first order", "total order"))
    plot = sensitivity(given, series=series)
    assert plot.data["values"].shape == (8, 1)
    assert plot.data["items"] == [item for item, _ in given.ranked("total order")]


def test_values_without_a_place_are_written_out():
    values = torch.tensor([1.0, torch.nan, 0.5, -3.0])
    given = dataclasses.replace(ranking(4, signed=True, error=False, null=False), values=values)
    plot = sensitivity(given, vmax=0.8)
    assert plot.data["items"] == [given.items[row] for row in (3, 0, 2, 1)]
    assert {"NaN", "← −3", "1 →"} <= set(texts(plot))
    assert plot.axes[0].get_xlim() == (-0.8, 0.8)


def test_labels_follow_their_items_and_white_space_shows():
    given = dataclasses.replace(ranking(3, error=False, null=False), values=torch.tensor([1.0, 3.0, 2.0]))
    plot = sensitivity(given, labels=["a", " Paris", "\n"])
    assert [label.get_text() for label in plot.axes[0].get_yticklabels()] == ["␣Paris", "↵", "a"]
    assert plot.data["items"] == [" Paris", "\n", "a"]


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        (ranking(3), {"series": 4}, OptionError, "there are 1 series, and no series 4"),
        (ranking(3, ("a", "b")), {"series": "c"}, OptionError, "unknown series 'c'"),
        (ranking(3, ("a", "b")), {"series": ["a", "a"]}, PlotError, "2 series .* up to 6 different ones of: a, b"),
        (ranking(3, tuple("abcdefg")), {}, PlotError, "7 series .*give series= up to 6"),
        (ranking(3), {"count": 0}, OptionError, "count=0 items; give 1 or more"),
        (ranking(3), {"vmax": -1}, OptionError, "vmax=-1 is the end of the axis"),
        (ranking(3), {"labels": ["a"]}, PlotError, "1 labels for 3 items"),
        (dataclasses.replace(ranking(3), values=torch.full((3,), torch.nan)), {}, PlotError, "none of the 3 values"),
        (dataclasses.replace(ranking(3), null=random(2)), {}, PlotError, r"null .* has shape \(2,\); for 3 items it"),
        (dataclasses.replace(ranking(3), items=()), {}, PlotError, r"shape \(3,\) for 0 items"),
        (dataclasses.replace(ranking(3), interval=random(3)), {}, PlotError, r"interval .* it is \(3, 2\)"),
        (profile(), {}, PlotError, "draws a Ranking, not a LayerProfile"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        sensitivity(given, **options)
