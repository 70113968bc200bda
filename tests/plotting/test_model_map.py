import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import Lens
from layerlens.errors import OptionError, PlotError
from layerlens.plotting import model_map
from layerlens.results import LayerProfile

from .helpers import PATHS, profile, table, texts


def numbers(names, values, **fields):
    base = LayerProfile("norm", tuple(names), torch.tensor(values), "1", False, "exact", {})
    return dataclasses.replace(base, **fields)


def bars(axes):
    return [patch.get_width() for patch in axes.patches]


def test_every_layer_has_its_row_bar_and_number():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 5)))
    plot = model_map(Lens(model).layers(), numbers(("0", "1", "2.0"), [2.0, -1.0, 0.5]))
    (axes,) = plot.axes
    assert plot.data["paths"] == ["", "0", "1", "2", "2.0"]
    assert np.array_equal(plot.data["values"], [np.nan, 2, -1, np.nan, 0.5], equal_nan=True)
    assert bars(axes) == [0, 2, -1, 0, 0.5]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [name.strip() for name in names] == [
        "(model)  Sequential",
        "0  Linear",
        "1  ReLU",
        "2  Sequential",
        "0  Linear",
    ]
    indents = [len(name) - len(name.lstrip()) for name in names]
    assert indents == [0, 3, 3, 3, 6]
    assert [artist.get_text() for artist in axes.texts] == ["2", "−1", "0.5"]


def test_the_table_alone_shows_parameters_time_or_memory():
    known = table(6)
    own = {row.path: float(row.own) for row in known.rows}
    plot = model_map(known)
    for path, value in zip(plot.data["paths"], plot.data["values"], strict=True):
        assert value == own[path] if own[path] else np.isnan(value)
    assert np.nanmax(model_map(known, quantity="memory").data["values"]) == 1
    assert np.nanmax(model_map(known, quantity="time").data["values"]) == pytest.approx(0.1)
    with pytest.raises(PlotError, match=r"no layer of Net has a number of time.*lens.layers\(x\)"):
        model_map(dataclasses.replace(known, rows=known.rows[1:2]), quantity="time")


def test_further_calls_have_rows_of_their_own():
    plot = model_map(table(3), numbers((PATHS[0], f"{PATHS[0]} #1", PATHS[1]), [1.0, 2.0, 3.0]))
    at = plot.data["paths"].index(PATHS[0])
    assert plot.data["paths"][at + 1] == f"{PATHS[0]} #1" and plot.data["values"][at + 1] == 2


def test_a_long_tree_runs_on_in_columns_that_say_where_they_begin():
    known = table(66)
    plot = model_map(known)
    assert len(plot.axes) == 3 and plot.data["paths"] == [row.path for row in known.rows]
    named = [[label.get_text() for label in axes.get_yticklabels()] for axes in plot.axes]
    assert all(column[0].startswith("… in enc") for column in named[1:])
    assert sum(map(len, named)) == len(known.rows) + 2
    assert len({axes.get_xlim() for axes in plot.axes}) == 1 and plot.fig.get_size_inches()[1] < 9.5


def test_a_cut_tree_shows_the_numbers_of_what_it_leaves_out():
    known = table(30)
    measured = profile(30)
    plot = model_map(known, measured, depth=3)
    (axes,) = plot.axes
    drawn = [value for line in axes.lines if line.get_marker() == "|" for value in line.get_xdata()]
    assert sorted(drawn) == pytest.approx(sorted(measured.values.tolist()))
    assert any("layers)" in label.get_text() for label in axes.get_yticklabels())
    assert any(text.startswith("ticks: the layers inside of a row that are not drawn") for text in texts(plot))
    assert all(path.count(".") < 3 for path in plot.data["paths"])


def test_numbers_without_a_place_are_written():
    plot = model_map(table(3), numbers(PATHS[:3], [float("nan"), float("inf"), 2.0]))
    assert {"NaN", "infinite", "2"} <= set(texts(plot)) and max(bars(plot.axes[0])) == 2
    log = model_map(table(3), numbers(PATHS[:3], [0.0, 1.0, 100.0]), scale="log")
    assert log.axes[0].get_xscale() == "log" and "0" in texts(log)


def test_a_series_is_taken_by_name_or_place():
    two = profile(4, ("before", "after"))
    plot = model_map(table(4), two, series="after")
    assert np.nanmax(plot.data["values"]) == pytest.approx(float(two.values[:, 1].max()))
    assert model_map(table(4), two, series=1).data["values"].tolist()[-1] == plot.data["values"].tolist()[-1]


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        (profile(2), {}, PlotError, "draws a LayerTable, not a LayerProfile"),
        (table(2), {"profile": numbers(("x", PATHS[0]), [1.0, 2.0])}, PlotError, "1 of the 2 layers .* in Net: x"),
        (table(2), {"profile": table(2)}, PlotError, "come from a LayerProfile, not a LayerTable"),
        (table(2), {"profile": numbers(PATHS[:1], [float("nan")])}, PlotError, "All are NaN or infinite"),
        (table(2), {"profile": numbers(PATHS[:1], [-1.0]), "scale": "log"}, PlotError, "Use scale='linear'"),
        (table(2), {"profile": profile(2), "series": 3}, OptionError, "series=3, but the profile holds 1"),
        (table(2), {"quantity": "size"}, OptionError, "unknown .*'size'"),
        (table(2), {"depth": 0}, OptionError, "depth=0 levels"),
        (table(2), {"scale": "cube"}, OptionError, "unknown scale 'cube'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        model_map(given, **options)
