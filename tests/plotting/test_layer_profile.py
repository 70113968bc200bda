import dataclasses

import numpy as np
import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import layer_profile

from .helpers import PATHS, maps, profile, random, texts


def test_bars_run_from_the_first_layer_down_with_error_and_null():
    given = profile(10)
    plot = layer_profile(given)
    (axes,) = plot.axes
    bars = [bar for bar in axes.patches if bar.get_height() == pytest.approx(0.72)]
    assert [bar.get_width() for bar in bars] == pytest.approx(given.values.tolist())
    assert [bar.get_y() for bar in bars] == sorted(bar.get_y() for bar in bars) and axes.yaxis_inverted()
    whiskers = axes.collections[0].get_segments()
    assert [whisker[1][0] - whisker[0][0] for whisker in whiskers] == pytest.approx([0.2] * 10)
    assert any(
        line.get_xdata().tolist() == given.null.double().tolist() for line in axes.lines if len(line.get_xdata()) == 10
    )
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["±1 standard error", "null"]
    assert axes.get_xlabel() == "Jacobian norm (score)"


@pytest.mark.parametrize("layers, series, scale", [(41, (), "linear"), (5, ("a", "b"), "linear"), (5, (), "log")])
def test_many_layers_several_series_and_log_scales_are_lines(layers, series, scale):
    given = profile(layers, series, error=False, null=False)
    (axes,) = layer_profile(given, scale=scale).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == layers]
    assert not axes.patches and len(lines) == max(len(series), 1)
    drawn = np.stack([line.get_xdata() for line in lines], axis=1)
    np.testing.assert_allclose(drawn, given.values.reshape(layers, -1).numpy())
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines)
    assert axes.get_xscale() == scale


def test_every_layer_is_named_up_to_78_and_then_some():
    labels = [label.get_text() for label in layer_profile(profile(60)).axes[0].get_yticklabels()]
    assert tuple(label.replace("\n", "") for label in labels) == PATHS[:60]
    many = dataclasses.replace(
        profile(), layers=tuple(map(str, range(300))), values=torch.rand(300), error=None, null=None
    )
    plot = layer_profile(many)
    assert 50 < len(plot.axes[0].get_yticks()) < 100 and plot.fig.get_size_inches()[1] < 9.5


def test_values_without_a_place_are_written_out():
    values = torch.tensor([1.0, 0.0, torch.nan, -2.0, torch.inf, 3.0])
    given = dataclasses.replace(profile(6, error=False, null=False), values=values)
    log = [artist.get_text() for artist in layer_profile(given, scale="log").axes[0].texts]
    assert log == ["0", "NaN", "−2", "infinite"]
    assert [artist.get_text() for artist in layer_profile(given).axes[0].texts] == ["NaN", "infinite"]


def test_of_rows_that_are_too_many_to_name_hidden_values_are_written_once_in_a_while():
    values = torch.rand(300)
    values[100:140] = torch.nan
    names = tuple(map(str, range(300)))
    given = dataclasses.replace(profile(), layers=names, values=values, error=None, null=None)
    axes = layer_profile(given).axes[0]
    places = [artist.xy[1] for artist in axes.texts]
    assert {artist.get_text() for artist in axes.texts} == {"NaN"}
    assert min(np.diff(places)) == np.diff(axes.get_yticks())[0] and 96 <= places[0] <= 100 and 136 <= places[-1] < 140


def test_each_series_has_its_own_null():
    given = profile(8, ("a", "b"))
    given = dataclasses.replace(given, null=random(8, 2).abs())
    axes = layer_profile(given).axes[0]
    for index in range(2):
        found = [line for line in axes.lines if np.array_equal(line.get_xdata(), given.null[:, index].double())]
        (value,) = [line for line in axes.lines if np.array_equal(line.get_xdata(), given.values[:, index].double())]
        assert len(found) == 1 and found[0].get_color() == value.get_color()
    marks = [line.get_marker() for line in axes.lines if line.get_label() in ("a", "b")]
    assert len(set(marks)) == 2


def test_the_width_follows_the_names_unless_given():
    assert layer_profile(profile()).fig.get_size_inches()[0] == 6.75
    assert layer_profile(profile(), labels=list("abcdefghij")).fig.get_size_inches()[0] == 3.25


def test_long_names_in_a_column_are_broken_not_cut():
    labels = [label.get_text() for label in layer_profile(profile(), width="column").axes[0].get_yticklabels()]
    assert any("\n" in label for label in labels)
    assert tuple(label.replace("\n", "") for label in labels) == PATHS[:10]


def test_signed_bars_are_colored_by_sign():
    given = dataclasses.replace(profile(2, error=False, null=False, signed=True), values=torch.tensor([1.0, -1.0]))
    up, down = (bar.get_facecolor() for bar in layer_profile(given).axes[0].patches)
    assert up[0] > up[2] and down[2] > down[0]
    assert "Exact" in texts(layer_profile(given))


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        (profile(), {"scale": "ln"}, OptionError, "unknown scale 'ln'"),
        (profile(), {"labels": ["a"]}, PlotError, r"values of the profile has shape \(10,\) for 1 layers or labels"),
        (
            dataclasses.replace(profile(), values=-torch.ones(10)),
            {"scale": "log"},
            PlotError,
            "none of the 10 values .*Use scale='linear'",
        ),
        (dataclasses.replace(profile(), values=torch.full((10,), torch.nan)), {}, PlotError, "All are NaN or infinite"),
        (dataclasses.replace(profile(), layers=()), {}, PlotError, "has no layers"),
        (maps(1, 3, 4, 4), {}, PlotError, "draws a LayerProfile, not a ActivationMaps"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        layer_profile(given, **options)


def test_marks_are_hollow_where_p_is_above_five_percent():
    values = torch.tensor([[0.9, 0.4], [1.0, 0.6], [0.2, 0.5]])
    checks = {
        "p a": torch.tensor([0.025, 0.5, 0.05], dtype=torch.float64),
        "p b": torch.ones(3),
        "p of slope a": torch.ones(3),
    }
    given = dataclasses.replace(profile(3, ("a", "b"), error=False, null=False), values=values, checks=checks)
    plot = layer_profile(given)
    (axes,) = plot.axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata()) == 3]
    drawn = np.stack([line.get_xdata() for line in hollow], axis=1)
    np.testing.assert_allclose(drawn, [[np.nan, 0.4], [1.0, 0.6], [np.nan, 0.5]], rtol=1e-6)
    assert axes.get_legend().get_texts()[-1].get_text() == "p > 0.05" and plot.data["p"].shape == (3, 2)
    alone = dataclasses.replace(given, values=values[:, :1], series=("a",))
    assert layer_profile(alone, p="p of slope").data["p"].tolist() == [[1.0]] * 3  # lines, also of one series
    with pytest.raises(PlotError, match=r"no check 'p of slope' of each series; it has \['p a'"):
        layer_profile(given, p="p of slope")
