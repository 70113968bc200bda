"""Figures of tables: order and numbers as computed by hand, with the names and values of the features."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import Lens
from layerlens.errors import InputError, OptionError, PlotError
from layerlens.plotting import beeswarm, contributions, dependence, feature_bars, waterfall
from layerlens.results import Contributions, Entry, Ledger, importance

from .helpers import attribution, images, random, text_outside, texts

NAMES = ["age", "bmi", "pressure", "smoker", "glucose"]


def table(batch=30, features=5, names=NAMES):
    x = random(batch, features, seed=4)
    result = attribution(batch, features, inputs=x, axes=("batch", "feature"), method="kernel_shap")
    return result.named(names) if names else result


def test_a_beeswarm_has_a_point_for_each_sample_in_the_order_of_mean_sizes():
    result = table()
    means = result.values.abs().mean(dim=0)
    best = means.argsort(descending=True).tolist()
    plot = beeswarm(result)
    assert plot.data["items"] == [NAMES[one] for one in best] and not text_outside(plot)
    np.testing.assert_allclose(plot.data["mean"], means[best])
    for place, points in enumerate(plot.axes[0].collections[:5]):
        at = points.get_offsets()
        np.testing.assert_allclose(at[:, 0], result.values[:, best[place]], rtol=1e-6)
        assert np.abs(at[:, 1] - place).max() <= 0.4
        x = result.inputs[:, best[place]].numpy()  # the largest is yellow, the smallest dark
        shade = points.get_facecolors()[:, :3].mean(axis=1)
        assert shade[x.argmin()] == shade.min() and points.get_facecolors()[x.argmax(), 0] > 0.9


def test_features_beyond_count_are_summed_sample_by_sample():
    result = table()
    best = result.values.abs().mean(dim=0).argsort(descending=True).tolist()
    plot = beeswarm(result, count=2)
    assert plot.data["items"][2] == "3 others, sum"
    np.testing.assert_allclose(plot.data["values"][2], result.values[:, best[2:]].double().sum(dim=1))
    assert beeswarm(result, count=4).data["items"] == beeswarm(result).data["items"]  # one other is kept


def test_a_waterfall_of_a_complete_method_goes_from_the_baseline_to_the_score():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    found = Lens(net).saliency(x, method="integrated_gradients", steps=400, target=0)
    plot = waterfall(found, 1)
    values = found.tensor[1].numpy()
    order = np.argsort(-np.abs(values))
    np.testing.assert_allclose(plot.data["values"], values[order])
    assert plot.data["base"] == pytest.approx(net(torch.zeros(1, 4).double()).item(), abs=1e-4)
    assert plot.data["end"][0] == pytest.approx(net(x[1:2]).item()) and plot.data["start"][-1] == plot.data["base"]
    np.testing.assert_allclose(plot.data["start"][:-1], plot.data["end"][1:])
    assert plot.data["items"][0] == f"f{order[0]} = {float(x[1, order[0]]):.3g}".replace("-", "−")
    lefts = [min(bar.get_x(), bar.get_x() + bar.get_width()) for bar in plot.axes[0].patches]
    np.testing.assert_allclose(lefts, np.minimum(plot.data["start"], plot.data["end"]))


def test_bars_are_sorted_with_the_values_of_the_features():
    result = table(2)
    plot = feature_bars(result, 1)
    order = result.values[1].abs().argsort(descending=True).tolist()
    shown = [float(f"{result.inputs[1, one]:.3g}") for one in order]
    assert [item.split(" = ")[0] for item in plot.data["items"]] == [NAMES[one] for one in order]
    assert [float(item.split(" = ")[1].replace("−", "-")) for item in plot.data["items"]] == pytest.approx(shown)
    np.testing.assert_allclose([bar.get_width() for bar in plot.axes[0].patches], result.values[1][order], rtol=1e-6)
    several = feature_bars(result)
    assert several.data["samples"] == [0, 1] and len({axes.get_xlim() for axes in several.axes}) == 1
    assert feature_bars(dataclasses.replace(result, inputs=None), 1).data["items"][0] == NAMES[order[0]]


def test_importance_is_the_mean_size_with_a_bootstrap_interval():
    result = table(60)
    found = importance(result, draws=4000)
    sizes = result.values.abs().double()
    torch.testing.assert_close(found.values, sizes.mean(dim=0))
    error = sizes.std(dim=0) / 60**0.5  # the interval of a mean of 60 is nearly that of the normal distribution
    torch.testing.assert_close(found.interval[:, 0], found.values - 1.96 * error, rtol=0, atol=0.03)
    torch.testing.assert_close(found.interval[:, 1], found.values + 1.96 * error, rtol=0, atol=0.03)
    plot = result.plot("importance")
    assert plot.data["items"] == [NAMES[one] for one in sizes.mean(dim=0).argsort(descending=True)]
    assert "mean |value| of 60 samples (score)" in texts(plot)
    assert importance(table(1)).interval is None and torch.equal(
        importance(result).interval, importance(result).interval
    )


def test_dependence_is_value_against_feature():
    result = table()
    plot = dependence(result, "bmi", color="smoker")
    at = plot.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(at, torch.stack([result.inputs[:, 1], result.values[:, 1]], dim=1), rtol=1e-6)
    np.testing.assert_allclose(plot.data["color"], result.inputs[:, 3])
    best = int(result.values.abs().mean(dim=0).argmax())
    assert dependence(result).axes[0].get_xlabel() == NAMES[best] and dependence(result, -1).data["values"].shape == (
        30,
    )


@pytest.mark.parametrize("draw", [beeswarm, waterfall, feature_bars, dependence])
def test_what_is_not_a_table_is_refused(draw):
    with pytest.raises(PlotError, match=r"a table has one number for each feature, \(batch, feature\); got"):
        draw(images(1))
    with pytest.raises(PlotError, match="a table has one number for each feature"):
        draw(attribution(1, 3, tokens=[["a", "b", "c"]]))


def test_wrong_options_are_refused():
    with pytest.raises(OptionError, match=r"unknown feature 'agee'.*age"):
        dependence(table(), "agee")
    with pytest.raises(OptionError, match=r"feature 7: there are 5 \(0 to 4\)"):
        dependence(table(), 7)
    with pytest.raises(PlotError, match="keeps no inputs to draw along"):
        dependence(dataclasses.replace(table(), inputs=None))
    with pytest.raises(OptionError, match="count=0 features"):
        beeswarm(table(), count=0)
    with pytest.raises(InputError, match="a table has one number"):
        importance(images())


def test_numbers_of_steps_do_not_run_into_the_names_of_rows():
    amounts = {"part": 9.0, "input": -0.0173, "additive": 0.5}
    entries = tuple(Entry(kind, "", "x", torch.tensor([amount])) for kind, amount in amounts.items())
    part, table = ("model.layers.23.self_attn",), torch.tensor([[9.0]])
    ledger = Ledger(torch.tensor([9.4827]), entries)
    drawn = contributions(Contributions(part, part, ((),), table, table, ledger, "layer", "1", None, "", {}))
    drawn.fig.canvas.draw()
    (axes,) = drawn.axes
    names = max(one.get_window_extent().x1 for one in axes.get_yticklabels())
    assert all(one.get_window_extent().x0 > names for one in axes.texts)
