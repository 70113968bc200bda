import dataclasses

import numpy as np
import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import curves

from .helpers import PATHS, curve, profile, random, texts


def lines(plot, dashed=False):
    return [line for line in plot.axes[0].lines if (line.get_linewidth() == 0.7) is dashed]


def test_each_series_is_a_line_with_its_error_as_a_band():
    given = curve(("PGD", "FGSM"))
    plot = curves(given)
    for line, values in zip(lines(plot), given.values, strict=True):
        np.testing.assert_allclose(line.get_ydata(), values.numpy())
        np.testing.assert_allclose(line.get_xdata(), given.points.numpy())
    for band, values, error in zip(plot.axes[0].collections, given.values, given.error, strict=True):
        edges = band.get_paths()[0].vertices[:, 1]
        assert edges.max() == pytest.approx(float((values + error).max()), rel=1e-5)
        assert edges.min() == pytest.approx(float((values - error).min()), rel=1e-5)
    assert {"PGD", "FGSM", "±1 standard error", "chance of each"} <= set(texts(plot))
    assert plot.axes[0].get_xlabel() == "eps" and plot.axes[0].get_ylabel() == "accuracy"


def test_lines_differ_in_color_style_and_mark():
    plot = curves(curve(tuple("abcdef")))
    looks = [(line.get_color(), str(line._dash_pattern), line.get_marker()) for line in lines(plot)]
    assert all(len({look[part] for look in looks}) == 6 for part in range(3))


def test_chance_is_dashed_once_where_all_curves_share_it():
    given = curve(("a", "b"))
    assert len(lines(curves(given), dashed=True)) == 2
    shared = curves(dataclasses.replace(given, null=torch.full_like(given.values, 0.1)))
    (line,) = lines(shared, dashed=True)
    assert set(line.get_ydata()) == {float(torch.tensor(0.1))} and line.is_dashed()
    assert "chance" in texts(shared)
    assert not lines(curves(dataclasses.replace(given, null=None)), dashed=True)


def test_many_curves_take_the_colors_of_a_scale_in_order_and_some_are_named():
    plot = curves(curve(PATHS[:30]))
    colors = [tuple(line.get_color()) for line in lines(plot)]
    weights = np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff([np.array(color[:3]) @ weights for color in colors]) > 0).all()
    named = [one.get_text() for one in plot.axes[0].get_legend().get_texts()]
    assert named[0] == PATHS[0] and PATHS[29] in named and len(named) == 7
    assert "30 curves in order, from dark to light." in texts(plot)


def test_points_without_a_number_leave_a_gap_and_are_told():
    given = curve(("a", "b"))
    values = given.values.clone()
    values[1, 2] = torch.nan
    plot = curves(dataclasses.replace(given, values=values))
    assert np.isnan(lines(plot)[1].get_ydata()[2])
    assert "b: 1 point(s) without a number." in texts(plot)


@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
def test_the_scale_is_that_of_the_points(scale):
    given = curve()
    given = dataclasses.replace(given, points=given.points + 1) if scale == "log" else given
    axes = curves(given, scale=scale).axes[0]
    assert axes.get_xscale() == scale and axes.get_yscale() == "linear"
    if scale == "symlog":
        assert axes.xaxis.get_transform().linthresh == pytest.approx(float(given.points[1]))
        assert 0 in axes.get_xticks() and set(axes.get_xticks()) <= set(given.points.double().tolist())


def test_the_axis_of_values_is_logarithmic_or_bounded_when_asked():
    given = dataclasses.replace(curve(("a", "b")), values=torch.tensor([[1.0, 2, 3, 4, 5], [1, 10, 100, 1e3, 1e4]]))
    axes = curves(given, yscale="log").axes[0]
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] > 0
    plot = curves(given, ylim=(0, 50))
    assert plot.axes[0].get_ylim() == (0, 50) and "b: 3 point(s) outside of the axis." in texts(plot)
    few = dataclasses.replace(curve(("a",), error=False, null=False), values=torch.tensor([[1.0, 2, 3, 4, 8]]))
    assert {1, 2, 5} <= set(curves(few, yscale="log").axes[0].get_yticks())  # not powers of ten alone


def test_several_curves_of_one_quantity_share_axes():
    first, second = curve(("PGD",)), dataclasses.replace(curve(("PGD",), seed=4), method="other")
    plot = curves([first, second])
    assert list(plot.data) == ["attack: PGD", "other: PGD"]
    np.testing.assert_allclose(plot.data["other: PGD"]["values"], second.values[0].numpy())
    assert list(curves([first, second], labels=["a", "b"]).data) == ["a", "b"]


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        (curve(), {"scale": "ln"}, OptionError, "unknown scale 'ln'"),
        (curve(), {"scale": "log"}, PlotError, "no place for the point 0. Use scale='symlog'"),
        (curve(), {"yscale": "ln"}, OptionError, "unknown yscale 'ln'"),
        (curve(), {"yscale": "log"}, PlotError, "no place for the value -.*yscale='linear'"),
        (curve(), {"yscale": "log", "ylim": (0, 1)}, PlotError, "no place for the value 0"),
        (curve(), {"ylim": (1, 1)}, OptionError, r"ylim=\(1, 1\); give the smallest"),
        (curve(), {"labels": ["a", "b"]}, PlotError, r"2 labels for 1 curves \(PGD\)"),
        ([curve(), curve()], {}, PlotError, "more than one curve is named 'attack: PGD'. Give labels="),
        ([curve(), dataclasses.replace(curve(), along="sigma")], {}, PlotError, "different along .* 'eps', 'sigma'"),
        ([], {}, PlotError, r"draws a Curve or a list of them, not \[\]"),
        ([profile()], {}, PlotError, r"not \[LayerProfile\]"),
        (profile(), {}, PlotError, "not a LayerProfile"),
        (dataclasses.replace(curve(), values=torch.full((1, 5), torch.nan)), {}, PlotError, "none of the 5 values"),
        (dataclasses.replace(curve(), null=random(1, 4)), {}, PlotError, r"null .* shape \(1, 4\); .* it is \(1, 5\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        curves(given, **options)
