import dataclasses

import numpy as np
import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import timeseries

from .helpers import attribution, random, texts


def series(steps=40, features=9, **fields):
    return attribution(2, steps, features, inputs=random(2, steps, features, seed=5), **fields)


def test_the_line_is_the_signal_and_the_colors_are_its_relevance():
    one = series()
    plot = timeseries(one, 1, channels=[7, 2])
    assert plot.data["channels"].tolist() == [7, 2]
    largest = float(np.percentile(np.abs(plot.data["relevance"]), 99.5))
    for axes, channel in zip(plot.axes, (7, 2), strict=True):
        assert np.array_equal(axes.lines[0].get_ydata(), one.inputs[1, :, channel].numpy())
        assert np.array_equal(axes.images[0].get_array()[0], one.values[1, :, channel].numpy())
        assert axes.images[0].get_clim() == pytest.approx((-largest, largest))
        left, right, *_ = axes.images[0].get_extent()
        assert (left, right) == (-0.5, 39.5) == axes.get_xlim() and axes.get_ylabel() == f"feature {channel}"


def test_channels_with_the_most_relevance_are_drawn_in_their_order():
    one = series()
    best = one.values[0].abs().sum(dim=0).topk(3).indices.sort().values.tolist()
    plot = timeseries(one, 0, count=3)
    assert plot.data["channels"].tolist() == best
    assert "3 of 9 features with the most relevance; line: the input; color: the attribution" in texts(plot)


@pytest.mark.parametrize("along, label", [("length", "place"), ("time", "step")])
def test_channels_may_come_first_and_there_may_be_one_series_alone(along, label):
    first = attribution(2, 4, 30, inputs=random(2, 4, 30, seed=5), axes=("batch", "channel", along))
    plot = timeseries(first, 0)
    assert plot.data["signal"].shape == (4, 30) and np.array_equal(plot.data["signal"], first.inputs[0].numpy())
    assert plot.axes[0].get_ylabel() == "channel 0" and plot.axes[-1].get_xlabel() == label
    alone = timeseries(attribution(2, 30, inputs=random(2, 30, seed=5)), 0)
    assert alone.data["signal"].shape == (1, 30) and len(alone.axes) == 1


def test_a_long_series_shows_the_largest_of_each_block_with_its_sign():
    one = series(5003, 1)
    plot = timeseries(one)
    cells = plot.axes[0].images[0].get_array()[0]
    values = one.values[0, :, 0].numpy()
    blocks = [values[start : start + 3] for start in range(0, 5003, 3)]
    assert np.array_equal(cells, [block[np.abs(block).argmax()] for block in blocks])
    assert (
        "each color: the largest of 3 steps; line: the input; color: the attribution" in texts(plot)
        and len(plot.axes[0].lines[0].get_ydata()) == 5003
    )
    assert plot.axes[0].images[0].get_extent()[1] == 3 * len(blocks) - 0.5 and plot.axes[0].get_xlim()[1] == 5002.5


def test_time_can_be_in_seconds_and_channels_can_have_names():
    plot = timeseries(series(), rate=20, channels=[1], labels=list("abcdefghi"))
    assert plot.axes[0].get_xlabel() == "seconds" and plot.axes[0].get_ylabel() == "b"
    assert plot.axes[0].lines[0].get_xdata()[-1] == pytest.approx(39 / 20)
    assert plot.axes[0].get_xlim() == pytest.approx((-0.5 / 20, 39.5 / 20))


def test_another_signal_can_be_drawn():
    one = dataclasses.replace(series(), inputs=None, axes=("batch", "time", "feature"))
    raw = random(40, 9, seed=8)
    assert np.array_equal(timeseries(one, 0, signal=raw, channels=[0]).data["signal"][0], raw[:, 0].numpy())


def test_one_of_several_inputs():
    both = {"ecg": random(1, 20, 2), "age": random(1, 1)}
    one = dataclasses.replace(series(), values=both, inputs=both, score=torch.ones(1))
    assert np.array_equal(timeseries(one, name="ecg").data["signal"], both["ecg"][0].T.numpy())


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        (attribution(1, 3, 8, 8), {}, PlotError, r"draws a series, .*has shape \(8, 8\)"),
        (
            dataclasses.replace(series(), inputs=None, axes=("batch", "time", "feature")),
            {},
            PlotError,
            "keeps no series",
        ),
        (
            series(),
            {"sample": 0, "signal": random(9, 40)},
            PlotError,
            r"signal has shape \(9, 40\), but .* 9 channels and 40 steps",
        ),
        (series(), {"channels": []}, OptionError, r"channels=\[\] draws nothing"),
        (series(), {"channels": [9]}, OptionError, r"channels=\[9\], but the series has 9 \(0 to 8\)"),
        (series(), {"count": 0}, OptionError, "count=0 channels"),
        (series(), {"rate": 0}, OptionError, "rate=0 steps per second"),
        (series(), {"labels": ["a"]}, PlotError, "1 labels for the 9 channels"),
        (series(), {"sample": 0, "signal": torch.full((40, 9), torch.nan)}, PlotError, "the signal .* holds NaN"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        timeseries(given, **options)
