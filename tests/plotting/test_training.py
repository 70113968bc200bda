import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.colors import LogNorm

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import gradient_flow, plot, training

from .helpers import PATHS, history, profile, texts


def planted():
    """Zeros from column 4 on in layer 1, then infinity and NaN in layer 2."""
    given = history(10, 5)
    values = given.values["gradient norm"].clone()
    values[4:, 1] = 0
    values[6:8, 2] = torch.inf
    values[8:, 2] = torch.nan
    return dataclasses.replace(given, values={**given.values, "gradient norm": values})


def layers_of(drawn):
    return next(axes for axes in drawn.axes if axes.images)


def test_rows_are_layers_and_columns_the_measured_steps():
    given = history(8, 5, names=[f"l{index}" for index in range(9)])
    drawn = training(given, width="page")
    axes = layers_of(drawn)
    (image,) = axes.images
    np.testing.assert_array_equal(np.asarray(image.get_array()), given.values["gradient norm"].T.numpy())
    assert axes.yaxis_inverted() and [one.get_text() for one in axes.get_yticklabels()] == [
        "l0",
        "l1",
        "l2",
        "l3",
        "l4",
    ]
    assert [one.get_text() for one in axes.get_xticklabels()] == [str(5 * index) for index in range(8)]
    assert any("units of the loss per unit of weight" in one.replace("\n", " ") for one in texts(drawn))
    assert not axes.get_legend()


def test_norms_over_decades_are_on_a_log_scale_and_means_diverge_about_zero():
    given = history()
    values = given.values["gradient norm"]
    norm = layers_of(training(given)).images[0].norm
    assert isinstance(norm, LogNorm) and norm.vmax == float(values.max())
    assert norm.vmin == max(float(values.min()), norm.vmax * 1e-8)
    assert not isinstance(layers_of(training(given, log=False)).images[0].norm, LogNorm)
    mean = layers_of(training(given, "activation mean")).images[0]
    assert mean.norm.vmin == -mean.norm.vmax == -float(given.values["activation mean"].abs().max())
    assert mean.cmap.name == "RdBu_r"
    narrow = dataclasses.replace(given, values={"gradient norm": 1 + torch.rand(12, 9).double()})
    assert not isinstance(layers_of(training(narrow)).images[0].norm, LogNorm)
    assert layers_of(training(given, vmax=50)).images[0].norm.vmax == 50


def test_a_log_scale_ends_after_eight_decades_and_says_so():
    given = history()
    values = given.values["gradient norm"].clamp(1, 10)
    values[0, 0] = 1e-30
    drawn = training(dataclasses.replace(given, values={"gradient norm": values}))
    assert layers_of(drawn).images[0].norm.vmin == pytest.approx(1e-7)
    assert any("lowest 1e−30" in one.replace("\n", " ") for one in texts(drawn))
    clipped = training(given, clip=90)
    assert layers_of(clipped).images[0].norm.vmax == pytest.approx(np.percentile(given.values["gradient norm"], 90))
    assert any("clipped at 90%" in one.replace("\n", " ") for one in texts(clipped))


def test_zero_nan_and_infinity_have_marks_of_their_own_counted_in_the_key():
    drawn = training(planted())
    axes = layers_of(drawn)
    assert [one.get_text() for one in axes.get_legend().get_texts()] == ["zero (6)", "infinite (2)", "NaN (2)"]
    marks = {patch.get_hatch(): patch.get_path().vertices for patch in axes.patches}
    assert {hatch: len(corners) // 5 for hatch, corners in marks.items()} == {".....": 6, "xxxxx": 2, "//////": 2}
    for hatch, column, row in ((".....", 4, 1), ("xxxxx", 6, 2), ("//////", 8, 2)):
        assert marks[hatch].min(axis=0).tolist() == [column - 0.5, row - 0.5]
        assert marks[hatch].max(axis=0).tolist() == [9.5 if hatch != "xxxxx" else 7.5, row + 0.5]
    masked = np.ma.getmaskarray(axes.images[0].get_array())
    assert masked.sum() == 10 and masked[1, 4:].all()
    # on a linear scale zero is a color
    linear = layers_of(training(planted(), log=False))
    assert [one.get_text() for one in linear.get_legend().get_texts()] == ["infinite (2)", "NaN (2)"]


@pytest.mark.parametrize("value, key", [(0.0, "zero (108)"), (float("nan"), "NaN (108)")])
def test_a_training_without_any_gradient_is_drawn_as_that(value, key):
    given = history()
    flat = torch.full_like(given.values["gradient norm"], value)
    drawn = training(dataclasses.replace(given, values={"gradient norm": flat}))
    assert key in texts(drawn)
    healthy = dataclasses.replace(history(quantity="constant units"))
    zeros = {"constant units": torch.zeros(12, 9).double()}
    drawn = training(dataclasses.replace(healthy, values=zeros))
    assert (
        any("zero everywhere" in one.replace("\n", " ") for one in texts(drawn)) and not layers_of(drawn).get_legend()
    )
    below = dataclasses.replace(healthy, values={"drift": zeros["constant units"] - 1e-9}, layers={"drift": PATHS[:9]})
    assert any("nothing above zero" in one.replace("\n", " ") for one in texts(training(below)))


def test_logged_values_stand_above_at_their_steps():
    given = history(4, 3, every=10)  # measured at 0, 10, 20, 30 and logged at 0 ... 39
    given.logged["loss"][7, 1] = torch.nan
    drawn = training(given)
    above, below = drawn.axes
    (line,) = above.lines
    x, y = line.get_xdata(), line.get_ydata()
    assert x[[0, 5, 10, 30]].tolist() == [0, 0.5, 1, 3] and x[-1] == 3.5 and (np.diff(x) > 0).all()
    np.testing.assert_allclose(y, given.logged["loss"][:, 1].numpy())
    assert above.get_xlim() == below.get_xlim() == (-0.5, 3.5) and above.get_ylabel() == "loss"
    assert "loss: 1 not finite." in [one.replace("\n", " ") for one in texts(drawn)]
    assert above.get_position().x0 == pytest.approx(below.get_position().x0)
    assert above.get_position().x1 == pytest.approx(below.get_position().x1)
    assert len(training(given, logged=()).axes) == 1
    several = history(logged=("loss", "accuracy", "lr", "more"))
    assert [axes.get_ylabel() for axes in training(several).axes[:-1]] == ["loss", "accuracy", "lr"]
    assert [axes.get_ylabel() for axes in training(several, logged=["more"]).axes[:-1]] == ["more"]


def test_uneven_steps_are_told():
    given = dataclasses.replace(history(4, 3), steps=torch.tensor([0, 1, 10, 50]))
    assert any("uneven distances" in one.replace("\n", " ") for one in texts(training(given)))
    assert not any("uneven distances" in one.replace("\n", " ") for one in texts(training(history(4, 3))))


def test_of_thousands_of_steps_no_peak_is_lost_and_all_marks_are_counted():
    given = history(3000, 6, logged=())
    values = given.values["gradient norm"].clamp(max=10)
    values[1234, 2], values[1500, 3] = 1e5, torch.inf
    drawn = training(dataclasses.replace(given, values={"gradient norm": values}))
    cells = drawn.data["drawn"]
    each = -(-3000 // cells.shape[1])
    assert each > 1 and cells[2, 1234 // each] == 1e5 and np.isinf(cells[3, 1500 // each])
    assert "infinite (1)" in texts(drawn) and drawn.data["values"].shape == (6, 3000)


def test_gradient_flow_draws_first_middle_and_last_step_by_layer():
    given = history(11, 6)
    drawn = gradient_flow(given)
    (axes,) = drawn.axes
    values = given.values["gradient norm"]
    np.testing.assert_array_equal(drawn.data["values"], values[[0, 5, 10]].T.numpy())
    lines = {line.get_label(): line.get_xdata() for line in axes.lines if line.get_label().startswith("step")}
    assert list(lines) == ["step 0", "step 25", "step 50"] and axes.get_xscale() == "log" and axes.yaxis_inverted()
    np.testing.assert_array_equal(lines["step 25"], values[5].numpy())
    assert axes.get_xlabel().replace("\n", " ") == "gradient norm (units of the loss per unit of weight), log scale"
    chosen = gradient_flow(given, "activation mean", steps=[10, "last"], scale="linear")
    np.testing.assert_array_equal(chosen.data["values"], given.values["activation mean"][[2, 10]].T.numpy())
    assert len(gradient_flow(history(1, 6)).data["values"][0]) == 1


def test_gradient_flow_names_what_a_log_axis_cannot_show_and_when():
    drawn = gradient_flow(planted(), steps=[0, 20, 35, 45])
    (axes,) = drawn.axes
    written = {artist.xy[1]: artist.get_text() for artist in axes.texts}
    assert written == {1: "0 (step 20, step 35, step 45)", 2: "infinite (step 35), NaN (step 45)"}
    drawn.fig.draw_without_rendering()
    ends = {artist.xy[1]: artist.get_window_extent().x1 for artist in axes.texts}
    for row, end in ends.items():  # what is written covers no mark
        known = [value for value in drawn.data["values"][row] if np.isfinite(value) and value > 0]
        assert axes.transData.transform((min(known), row))[0] > end
    everywhere = gradient_flow(planted(), steps=[25, 30]).axes[0]
    assert "0" in [artist.get_text() for artist in everywhere.texts]


def test_results_draw_themselves():
    given = history()
    assert len(given.plot().axes) == 2 and len(plot(given, "gradient_flow").axes) == 1


@pytest.mark.parametrize(
    "draw, options, error, expected",
    [
        (training, {"quantity": "los"}, OptionError, "unknown quantity 'los'"),
        (training, {"logged": ["lost"]}, OptionError, "unknown logged value 'lost'"),
        (training, {"vmax": -1}, OptionError, "vmax=-1 is the largest"),
        (training, {"clip": 0}, OptionError, "clip=0 is a percentile"),
        (training, {"quantity": "activation mean", "log": True}, PlotError, "values below zero .*Use log=False"),
        (training, {"labels": ["a"]}, PlotError, "1 labels for the 9 layers of 'gradient norm'"),
        (gradient_flow, {"steps": [7]}, OptionError, "step 7 was not measured; the nearest that were: 5, 10, 0"),
        (gradient_flow, {"steps": ["end"]}, OptionError, "unknown step 'end'"),
        (gradient_flow, {"steps": range(0, 60, 5)}, OptionError, "steps= names 12 steps; give 1 to 7"),
        (gradient_flow, {"steps": []}, OptionError, "steps= names 0 steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(draw, options, error, expected):
    with pytest.raises(error, match=expected):
        draw(history(), **options)


@pytest.mark.parametrize("draw", [training, gradient_flow])
def test_other_results_and_empty_trainings_are_refused(draw):
    with pytest.raises(PlotError, match="draws a TrainingHistory, not a LayerProfile"):
        draw(profile())
    with pytest.raises(PlotError, match="no step of this training was measured"):
        draw(history(0, 3, logged=()))
