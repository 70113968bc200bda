"""Leaderboards and curves."""

import dataclasses

import matplotlib.colors
import numpy as np
import pytest
import torch

from layerlens import Lens
from layerlens.analyzers.faithfulness import deletion
from layerlens.errors import OptionError, PlotError
from layerlens.plotting import faithfulness_curve, leaderboard, style

from .helpers import board, scored, texts


def dots(axes):
    return [line for line in axes.lines if line.get_marker() == "o"]


def test_rows_are_in_order_and_show_means_and_intervals():
    own = board()
    plot = leaderboard(own)
    (axes,) = plot.axes
    names = plot.data["methods"]
    means = [own.mean(name) for name in names]
    assert means == sorted(means, reverse=True) == [line.get_xdata()[0] for line in dots(axes)]
    assert [tuple(span) for span in plot.data["interval"]] == [own.interval(name) for name in names]
    assert [label.get_text().removesuffix(" (control)").lower() for label in axes.get_yticklabels()] == names


def test_controls_are_named_hollow_and_the_best_of_them_is_a_line():
    own = board()
    plot = leaderboard(own)
    (axes,) = plot.axes
    marked = [label.get_text().endswith("(control)") for label in axes.get_yticklabels()]
    assert [name for name, gray in zip(plot.data["methods"], marked, strict=True) if gray] == ["method 1", "method 4"]
    hollow = [line.get_markerfacecolor() == "white" for line in dots(axes)]
    assert hollow == marked
    dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 2]
    assert dashed == [own.mean("method 1")]
    assert any("dashed: the best control" in text for text in texts(plot))
    plain = leaderboard(dataclasses.replace(own, controls=()))
    assert not any("dashed" in text for text in texts(plain))


def test_for_a_metric_where_lower_is_better_the_lowest_is_first_and_the_lowest_control_is_the_line():
    own = board(metrics=("deletion",), higher=(False,))
    plot = leaderboard(own)
    assert plot.data["methods"][0] == min(own.methods, key=own.mean)
    dashed = [line.get_xdata()[0] for line in plot.axes[0].lines if line.get_linestyle() == "--"]
    assert dashed == [min(own.mean(name) for name in own.controls)]


def test_boards_stand_side_by_side_in_the_order_of_the_first():
    first, second = board(), board(samples=5, seed=3, target="class 8")
    plot = leaderboard([first, second])
    order = plot.data["methods"]
    assert order == sorted(first.methods, key=first.mean, reverse=True)
    np.testing.assert_array_equal([line.get_xdata()[0] for line in dots(plot.axes[1])], list(map(second.mean, order)))
    assert "class 7, 8 samples" in texts(plot) and "class 8, 5 samples" in texts(plot)


def test_metrics_stand_side_by_side_and_say_which_way_is_better():
    own = board(metrics=("insertion", "road"), higher=(True, False))
    plot = leaderboard(own, metric=["insertion", "road"])
    assert [axes.get_xlabel().replace("\n", " ") for axes in plot.axes] == [
        "Insertion (higher is better)",
        "ROAD (lower is better)",
    ]


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        ([], {}, PlotError, "one Leaderboard or more"),
        (3.5, {}, PlotError, "not a float"),
        ([3], {}, PlotError, "not a int"),
        ([board(), board(4)], {}, PlotError, "different methods: 'method 4'"),
        (board(), {"metric": "road"}, OptionError, "road"),
        (board(), {"labels": ["a", "b"]}, PlotError, r"2 label\(s\) for 1 panel"),
        (board(), {"metric": []}, PlotError, "panel"),
    ],
)
def test_what_is_no_leaderboard_is_refused(given, options, error, expected):
    with pytest.raises(error, match=expected):
        leaderboard(given, **options)


def test_curves_of_one_name_have_one_line_in_every_panel_and_one_place_in_the_legend():
    curves = [scored(name, seed=seed) for name in ("insertion", "deletion") for seed in range(2)]
    plot = faithfulness_curve(curves, labels=["a", "b"] * 2, panels=[one.name for one in curves], controls=["b"])
    left, right = plot.axes
    assert [axes.get_title() for axes in plot.axes] == ["insertion", "deletion"]
    for index in range(2):
        assert left.lines[index].get_color() == right.lines[index].get_color()
    assert left.lines[1].get_color() == style.FAINT != left.lines[0].get_color()
    assert left.get_ylim() == right.get_ylim()
    assert texts(plot).count("a") == texts(plot).count("b") == 1
    np.testing.assert_allclose(plot.data["deletion: b"], curves[3].scores.mean(dim=0))


def test_bands_are_one_standard_error():
    one = scored(samples=6)
    plot = faithfulness_curve(one)
    (band,) = plot.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    error = one.scores.std(dim=0) / 6**0.5
    assert heights.max() == pytest.approx(float((one.scores.mean(dim=0) + error).max()))
    assert matplotlib.colors.same_color(band.get_facecolor()[0][:3], plot.axes[0].lines[0].get_color())
    assert not faithfulness_curve(scored(samples=1)).axes[0].collections


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        ([], {}, PlotError, "one FaithfulnessCurve or more"),
        ([scored(), scored(units="score")], {}, PlotError, "different units: (probability|score)"),
        ([scored()], {"labels": ["a", "b"]}, PlotError, "2 label"),
        ([scored()], {"panels": ["a", "b"]}, PlotError, "2 panel"),
        ([scored()], {"labels": ["edges"], "controls": ["edge"]}, OptionError, "control 'edge'.*edges"),
    ],
)
def test_what_are_no_curves_of_one_kind_is_refused(given, options, error, expected):
    with pytest.raises(error, match=expected):
        faithfulness_curve(given, **options)


def test_one_axes_holds_one_panel():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    with pytest.raises(OptionError, match="one panel, and there are 2"):
        faithfulness_curve([scored(), scored("deletion")], panels=["a", "b"], ax=axes)
    with pytest.raises(OptionError, match="one panel, and there are 2"):
        leaderboard([board(), board()], ax=axes)


def test_values_that_are_not_finite_are_refused():
    own = board()
    broken = dataclasses.replace(own, values=torch.full_like(own.values, torch.nan))
    with pytest.raises(PlotError, match="not all finite"):
        leaderboard(broken)


def test_a_title_has_the_class_names_and_no_target_of_one_curve_alone():
    lens = Lens(torch.nn.Linear(3, 2), class_names=["cat", "dog"])
    x = torch.rand(4, 3)
    found = [metric(x, x, target="dog", steps=4) for metric in (lens.insertion, lens.deletion)]
    same = deletion(lens.model, x, x, target=1, steps=4)
    assert torch.equal(found[1].scores, same.scores)
    shown = texts(faithfulness_curve(found))
    assert any("dog" in one for one in shown) and "Mean of 4 samples; band: standard error." in shown
    both = texts(faithfulness_curve([scored(), dataclasses.replace(scored(), target="class 3")]))
    assert not any("class" in one for one in both)
