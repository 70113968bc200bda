"""Values whose sign is not settled look so in every figure: in more than their color, and with a note."""

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection

import layerlens
from layerlens import plotting
from layerlens.errors import InputError, OptionError
from layerlens.plotting.drawing.attribution_sample import read
from layerlens.plotting.drawing.intervals import FADED
from layerlens.report.figures import maps
from layerlens.results import Attribution

from .helpers import attribution, random

TIMES = 1.6448536269514722
"""Quantile .95 of a normal distribution."""


def half_known(*shape, **options):
    """Values of size 1 and above; the error of every second one is so large that its interval includes 0."""
    values = random(*shape)
    values = values.sign() * (1 + values.abs())
    wide = (torch.arange(values.numel()) % 2 == 0).reshape(shape)
    errors = torch.where(wide, values.abs(), values.abs() / 10)  # 1 - 1.64 < 0 < 1 - .164
    found = dataclasses.replace(attribution(*shape, **options), values=values, standard_error=errors)
    assert torch.equal(found.settled(0.9), ~wide)
    return found, wide.numpy()


def notes(plot):
    return " ".join(text.get_text() for text in plot.fig.texts)


def test_settled_is_where_the_interval_excludes_zero():
    values = torch.tensor([[1.0, -1.0, 1.0, 0.0, 1.0]])
    errors = torch.tensor([[0.6, 0.6, 0.7, 0.0, torch.nan]])
    found = dataclasses.replace(attribution(1, 5), values=values, standard_error=errors)
    assert found.settled().tolist() == [[True, True, False, False, False]]
    assert found.settled(0.8).tolist() == [[True, True, True, False, False]]
    few = dataclasses.replace(found, degrees=3)  # t is 2.35
    assert few.settled().tolist() == [[False, False, False, False, False]]
    by_name = dataclasses.replace(found, values={"a": values}, standard_error={"a": errors})
    assert by_name.settled()["a"].tolist() == found.settled().tolist()
    with pytest.raises(InputError, match="no standard error, so no interval"):
        attribution(1, 5).settled()
    with pytest.raises(OptionError, match="between 0 and 1"):
        found.plot(interval=1.5)


def test_places_of_an_image_are_faded():
    found, wide = half_known(1, 6, 6, inputs=random(1, 6, 6).abs(), axes=("batch", "height", "width"))
    plot, plain = found.plot(sample=0), found.plot(sample=0, interval=None)
    expected = np.where(wide[0], FADED, 1) * plain.data["alpha"]
    np.testing.assert_allclose(plot.data["alpha"], expected)
    assert "faded: 90 % interval includes 0" in notes(plot) and "faded" not in notes(plain)
    alone = found.plot(overlay=False)
    np.testing.assert_allclose(alone.axes[0].images[0].get_alpha(), np.where(wide[0], FADED, 1))
    sure = dataclasses.replace(found, standard_error=found.standard_error / 100)
    assert "faded" not in notes(sure.plot())


def test_errors_of_channels_add_up_and_sizes_have_none():
    values = torch.ones(1, 3, 4, 4)
    errors = torch.full((1, 3, 4, 4), 0.99 / TIMES)
    errors[..., 0] = 1.01 / TIMES
    found = dataclasses.replace(attribution(1, 3, 4, 4), values=values, standard_error=errors)
    plot = found.plot(overlay=False)
    faded = np.broadcast_to(np.arange(4) == 0, (4, 4))
    np.testing.assert_allclose(plot.axes[0].images[0].get_alpha(), np.where(faded, FADED, 1))
    one = found.plot(overlay=False, channel=1)
    np.testing.assert_allclose(one.axes[0].images[0].get_alpha(), np.where(faded, FADED, 1))
    assert "faded" not in notes(found.plot(overlay=False, channel="abs"))


@pytest.mark.parametrize("kind", ["heatmap", "bars", "waterfall"])
def test_bars_are_hatched_and_lines_show_intervals(kind):
    found, wide = half_known(1, 8)
    plot = found.plot(kind)
    bars = [bar for bar in plot.axes[0].patches if bar.get_width()]
    hatched = {round(abs(bar.get_width()), 5) for bar in bars if bar.get_hatch()}
    assert hatched == {round(abs(value), 5) for value in found.values[0][torch.from_numpy(wide[0])].tolist()}
    assert "hatched" in notes(plot) and "90 % interval" in notes(plot)
    assert not any(bar.get_hatch() for bar in found.plot(kind, interval=None).axes[0].patches)
    if kind == "waterfall":  # its bars begin where others end
        return
    lines = [one for one in plot.axes[0].collections if isinstance(one, LineCollection)]
    ends = np.array(lines[0].get_segments())[:, :, 0]
    expected = torch.stack(found.interval(0.9), dim=-1)[0].numpy()
    np.testing.assert_allclose(ends[ends[:, 0].argsort()], expected[expected[:, 0].argsort()], rtol=1e-5)


def test_the_sum_of_the_others_has_no_interval():
    found, _ = half_known(1, 8)
    plot = found.plot("bars", count=3)
    lines = [one for one in plot.axes[0].collections if isinstance(one, LineCollection)]
    assert len(lines[0].get_segments()) == 3 and len(plot.data["values"]) == 4


def test_a_long_vector_has_a_band():
    found, _ = half_known(1, 50)
    plot = found.plot()
    assert "band: 90 % interval" in notes(plot)
    (band,) = plot.axes[0].collections
    low, high = found.interval(0.9)
    extent = band.get_paths()[0].vertices[:, 1]
    assert extent.min() == pytest.approx(float(low.min()), rel=1e-5)
    assert extent.max() == pytest.approx(float(high.max()), rel=1e-5)


@pytest.mark.parametrize("kind", ["beeswarm", "dependence"])
def test_points_are_hollow(kind):
    found, wide = half_known(9, 4, inputs=random(9, 4))
    plot = found.plot(kind) if kind == "beeswarm" else found.plot(kind, feature=2)
    points = [one for one in plot.axes[0].collections if isinstance(one, PathCollection)]
    hollow = sum(len(one.get_offsets()) for one in points if not len(one.get_facecolors()))
    assert hollow == (wide.sum() if kind == "beeswarm" else 9) and len(points) == (4 if kind == "beeswarm" else 1)
    assert "hollow: 90 % interval includes 0" in notes(plot)


def test_steps_of_a_series_are_faded_also_where_several_share_a_color():
    found, wide = half_known(1, 30, 3, inputs=random(1, 30, 3))
    plot = found.plot("timeseries", count=3)
    np.testing.assert_allclose(plot.axes[0].images[0].get_alpha()[0], np.where(wide[0, :, 0], FADED, 1))
    np.testing.assert_allclose(found.plot().axes[0].images[0].get_alpha(), np.where(wide[0].T, FADED, 1))
    values = torch.ones(1, 4000, 1)
    values[:, ::2] = 2.0  # these are shown, and have the small error
    errors = torch.where(values > 1, 0.1, 9.0)
    long = dataclasses.replace(attribution(1, 4000, 1, inputs=random(1, 4000, 1)), values=values, standard_error=errors)
    assert (long.plot("timeseries").axes[0].images[0].get_alpha() == 1).all()


def test_tokens_are_pale_with_a_dotted_edge():
    found, wide = half_known(1, 6, tokens=[["a", "b", "c", "d", "e", "f"]])
    plot = found.plot("tokens")
    dotted, _ = (one for one in plot.axes[0].collections if isinstance(one, LineCollection))
    assert len(dotted.get_segments()) == wide.sum() and "dotted edge: 90 % interval includes 0" in notes(plot)
    plain = found.plot("tokens", interval=None).axes[0].collections[0].get_facecolors()
    pale = plot.axes[0].collections[0].get_facecolors()
    expected = np.where(wide[0][:, None], 1 + FADED * (plain - 1), plain)
    np.testing.assert_allclose(pale, expected, atol=1e-6)
    html = plotting.tokens_html(found)
    assert html.count("outline:1px dotted") == wide.sum() and "dotted edge: 90 % interval includes 0" in html
    assert html.count(" to ") == 6 and "dotted" not in plotting.tokens_html(found, interval=None)


def test_tokens_of_one_character_share_their_interval():
    found, _ = half_known(1, 3, tokens=[["a", "x", "y"]])
    found = dataclasses.replace(found, texts=[["a", "é", ""]])
    values = found.values[0]
    half = TIMES * found.standard_error[0]
    drawn = read(found, 0, interval=0.9)
    np.testing.assert_allclose(drawn.values, [values[0], values[1] + values[2]], rtol=1e-6)
    np.testing.assert_allclose(drawn.widths[:, 0], [half[0], half[1] + half[2]], rtol=1e-5)
    np.testing.assert_allclose(drawn.widths[:, 0], drawn.widths[:, 1], rtol=1e-5)


def test_uneven_intervals_are_drawn_uneven():
    values = torch.tensor([[1.0, 1.0, -1.0]])
    errors, skewness = torch.full((1, 3), 0.65), torch.tensor([[0.0, 0.5, 0.5]])
    found = dataclasses.replace(attribution(1, 3), values=values, standard_error=errors, skewness=skewness)
    low, high = found.interval(0.9)
    assert found.settled().tolist() == ((low > 0) | (high < 0)).tolist() == [[False, True, False]]
    plot = found.plot("bars")
    lines = [one for one in plot.axes[0].collections if isinstance(one, LineCollection)]
    ends = np.array(lines[0].get_segments())[:, :, 0]
    expected = torch.stack([low, high], dim=-1)[0].numpy()
    np.testing.assert_allclose(ends[ends[:, 1].argsort()], expected[expected[:, 1].argsort()], rtol=1e-5)
    assert sum(bool(bar.get_hatch()) for bar in plot.axes[0].patches) == 2


@pytest.mark.parametrize("draw", [plotting.compare_methods, plotting.method_grid, plotting.overlay_grid])
def test_figures_of_several_maps_fade_those_with_an_error(draw):
    inputs = random(1, 3, 6, 6).abs()
    found, wide = half_known(1, 6, 6, inputs=inputs)
    several = found if draw is plotting.overlay_grid else [found, attribution(1, 6, 6, inputs=inputs)]
    plot, plain = draw(several), draw(several, interval=None)
    assert "faded: 90 % interval includes 0" in notes(plot) and "faded" not in notes(plain)
    with_error = 1  # the picture comes first
    alpha, full = (one.axes[with_error].images[-1].get_alpha() for one in (plot, plain))
    np.testing.assert_allclose(alpha, np.where(wide[0], FADED, 1) * full)


def test_a_report_marks_tokens():
    found, wide = half_known(1, 6, tokens=[["a", "b", "c", "d", "e", "f"]])
    (strip,) = maps([found])
    assert [not token.settled for token in strip.tokens] == wide[0].tolist()
    assert "pale, dotted edge: 90 % interval includes 0" in strip.caption


def test_a_real_method_draws_its_intervals():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    found = layerlens.saliency(net, 3 * torch.randn(1, 12), target=0, method="shapley_sampling", permutations=6)
    assert isinstance(found, Attribution)
    hatched = sum(bool(bar.get_hatch()) for bar in found.plot("bars").axes[0].patches)
    assert hatched == int((~found.settled()).sum()) > 0
