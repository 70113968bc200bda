"""Several samples in one figure: as many as fit a page, on one scale, each under its number."""

import dataclasses

import matplotlib
import numpy as np
import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import (
    attention,
    channels,
    compare_methods as compare,
    heatmap,
    method_grid,
    overlay_grid,
    receptive_field,
    recurrent_states,
    timeseries,
    tokens,
    tokens_html as html,
)

from .helpers import (
    attention as weights,
    attribution,
    field,
    images,
    maps,
    overlapping,
    random,
    recurrent,
    text_outside,
    texts,
)


def test_a_batch_is_drawn_up_to_six_and_the_title_says_how_many():
    batch = images(20)
    plot = batch.plot()
    assert plot.data["samples"] == [0, 1, 2, 3, 4, 5] and len(plot.axes) == 6
    assert any(text.startswith("6 of 20 samples") for text in texts(plot))
    for number, values in zip(plot.data["samples"], plot.data["values"], strict=True):
        np.testing.assert_array_equal(values, batch.values[number].sum(dim=0).numpy())
        assert f"sample {number}: Gradient, class 7" in texts(plot)
    assert plot.fig.get_size_inches()[0] == 6.75 and plot.fig.get_size_inches()[1] < 9 and not text_outside(plot)


def test_samples_share_a_scale_and_one_of_zeros_is_drawn_on_it():
    batch = images(3)
    values = batch.values * torch.tensor([1.0, 0.0, 5.0])[:, None, None, None]
    plot = heatmap(dataclasses.replace(batch, values=values), clip=100)
    limits = {axes.images[-1].get_clim() for axes in plot.axes}
    assert limits == {(-float(abs(values.sum(1)).max()), float(abs(values.sum(1)).max()))}
    bars = heatmap(attribution(3, 5))
    assert len({axes.get_xlim() for axes in bars.axes}) == 1


def test_one_sample_says_which_and_a_list_draws_those():
    batch = images(4)
    assert "sample 2 of 4: Gradient, class 7" in texts(heatmap(batch, -2))
    assert heatmap(batch, [3]).data["values"].shape == (12, 12)
    assert heatmap(batch, [3, 1]).data["samples"] == [3, 1]
    assert heatmap(images(1)).data["values"].shape == (12, 12)
    assert not [text for text in texts(heatmap(images(1))) if "sample" in text]
    assert "Mine" in texts(heatmap(batch, title="Mine")) and "sample 1" in texts(heatmap(batch, title=""))
    fig = matplotlib.figure.Figure()
    heatmap(batch, ax=fig.add_subplot())
    assert fig.axes[0].get_title(loc="left").replace("\n", " ") == "sample 0 of 4: Gradient, class 7"


@pytest.mark.parametrize(
    "draw, result, panels",
    [
        (tokens, attribution(2, 3, tokens=[["a", "b", "c"]] * 2), 2),
        (timeseries, attribution(2, 9, 3, inputs=random(2, 9, 3)), 6),
        (channels, maps(2, 9, 4, 4), 2),
        (recurrent_states, recurrent(), 14),
        (receptive_field, field(12, 12), 2),
        (attention, weights(), 12),
        (compare, [images(), images(method="occlusion")], 6),
    ],
)
def test_every_figure_of_a_sample_draws_several(draw, result, panels):
    plot = draw(result)
    assert plot.data["samples"] == [0, 1] and len(plot.axes) == panels
    assert text_outside(plot) == [] and overlapping(plot) == []


def test_what_is_of_one_sample_asks_for_it():
    with pytest.raises(OptionError, match=r"overlay= is of one sample, and there are 2. Say which: sample=0"):
        heatmap(images(), overlay=np.zeros((12, 12)))
    with pytest.raises(OptionError, match=r"sample=\[\] draws nothing"):
        heatmap(images(), sample=[])
    with pytest.raises(OptionError, match=r"sample=7, but .* holds 2"):
        heatmap(images(), sample=[0, 7])
    with pytest.raises(PlotError, match="draws an Attribution, not a str"):
        heatmap("map")


def test_html_of_a_batch_has_every_sample():
    batch = attribution(3, 2, tokens=[["a", "b"]] * 3)
    assert html(batch).count("<div role") == 3 and "sample 2 of 3: Gradient" in html(batch)
    assert html(batch, 1) == html(batch, [1])
    many = attribution(9, 2, tokens=[["a", "b"]] * 9)
    assert html(many).count("<div role") == 6 and "6 of 9 samples: sample= chooses others" in html(many)


def test_samples_have_their_names_in_grids_and_in_html():
    named = dataclasses.replace(images(3), index=("Ada", 7, "Cy"))
    other = dataclasses.replace(images(1), index=("Dee",))
    expected = ["Ada, sample 0, score 0.5", "Cy, sample 2, score 1.5", "Dee, sample 3, score 0.5"]
    assert list(overlay_grid([named, other], which=[0, 2, 3]).data) == expected
    grid = method_grid([named], which=[1])
    assert grid.axes[0].get_ylabel() == "7\nclass 7\nscore 1"
    assert "Bob, sample 1 of 2: Target: class 7" in texts(
        compare([dataclasses.replace(images(2), index=("A", "Bob"))], 1)
    )
    assert heatmap(named, sample="Cy").data["values"].shape == heatmap(named, sample=2).data["values"].shape
    assert "Cy, sample 2 of 3: Gradient, class 7" in texts(heatmap(named, sample="Cy"))
    assert heatmap(named, sample=["Cy", 0]).data["samples"] == [2, 0]
    with pytest.raises(OptionError, match=r"unknown sample 'Bob'.* Known: Ada, 7, Cy"):
        heatmap(named, sample="Bob")
    assert "Ada: Gradient, class 7" in texts(heatmap(attribution(1, 3, index=("Ada",))))
    assert "index 3: Gradient, class 7" in texts(heatmap(attribution(1, 3, index=(3,))))
    tokens = attribution(2, 2, tokens=[["a", "b"]] * 2, index=("Ada", "Bob"))
    assert "Bob, sample 1 of 2: Gradient" in html(tokens)


def test_words_of_titles_and_of_names_of_rows_stay_whole_in_narrow_panels():
    methods = ("gradient", "occlusion", "integrated_gradients", "guided_backprop", "smooth_grad")
    maps = {name: dataclasses.replace(images(2), target="golden retriever", method=name) for name in methods}
    plot = method_grid(maps, width="column")
    written = {word for text in texts(plot) for word in text.split()}
    assert {"Gradient", "Occlusion", "Integrated", "Guided", "backpropagation", "SmoothGrad", "retriever"} <= written
    assert not text_outside(plot)
    boxes = [axes.yaxis.label.get_window_extent() for axes in plot.axes[::6]]
    assert boxes[1].y1 < boxes[0].y0
    assert {axes.title.get_rotation() for axes in method_grid(maps, width=14).axes} == {0}
