"""What holds of every figure, whatever it draws."""

import functools
import subprocess
import sys

import matplotlib
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.text import Text

from layerlens.errors import PlotError
from layerlens.plotting import (
    activation_mosaic,
    attention,
    channels,
    compare_methods,
    curves,
    faithfulness_curve,
    feature_visualization,
    gradient_flow,
    heatmap,
    latent_traversal,
    layer_profile,
    leaderboard,
    matrix,
    method_grid,
    model_map,
    overlay_grid,
    receptive_field,
    recurrent_states,
    relevance_flow,
    sensitivity,
    timeseries,
    tokens,
    top_inputs,
    training,
)

from .helpers import (
    LONG,
    PATHS,
    attention as looks,
    attribution,
    board,
    curve,
    field,
    grid,
    history,
    images,
    ledger,
    made,
    maps,
    overlapping,
    profile,
    random,
    ranking,
    recurrent,
    relevance,
    scored,
    table,
    text_outside,
    texts,
    top_inputs as tops,
    traversal,
)

TOKENS = [["[CLS]", "a", "$5 and $6", "extraordinarily", "\n", "", "end"]]

FIGURES = {
    "image": lambda **o: heatmap(images(), **o),
    "image, long names": lambda **o: heatmap(images(method=LONG, units="score per unit of input of the model"), **o),
    "image, narrow": lambda **o: heatmap(images(method=LONG), **{"width": 1.6, **o}),
    "map": lambda **o: heatmap(attribution(2, 12, 30, signed=False, inputs=random(2, 3, 12, 30)), **o),
    "series": lambda **o: heatmap(attribution(1, 50, 4, inputs=random(1, 50, 4)), **o),
    "series, named": lambda **o: heatmap(attribution(2, 50, 3, inputs=random(2, 50, 3)), labels=PATHS[:3], **o),
    "tokens": lambda **o: heatmap(attribution(1, 7, tokens=TOKENS), **o),
    "many tokens": lambda **o: heatmap(attribution(1, 200, tokens=[[f"word{i}" for i in range(200)]]), **o),
    "vector": lambda **o: heatmap(attribution(2, 9), labels=PATHS[:9], **o),
    "long vector": lambda **o: heatmap(attribution(2, 300), **o),
    "grid of 1": lambda **o: overlay_grid(images(1), **o),
    "grid of 12": lambda **o: overlay_grid(images(12), labels=[LONG[:60]] * 12, **o),
    "1 method": lambda **o: compare_methods([images()], **o),
    "2 methods": lambda **o: compare_methods([images(), images(method="B", signed=False)], **o),
    "12 methods": lambda **o: compare_methods([images(1, method=LONG)] * 12, **o),
    "mosaic": lambda **o: activation_mosaic(maps(1, 8, 6, 6, inputs=random(1, 3, 24, 24)), **o),
    "mosaic of 4": lambda **o: activation_mosaic(
        [
            maps(1, 8, 6, 9, layer=LONG),
            maps(1, 8, 20, axes=("batch", "unit", "token")),
            maps(1, 8),
            maps(1, 3, 5, 5),
        ],
        **o,
    ),
    "profile": lambda **o: layer_profile(profile(), **o),
    "profile, narrow": lambda **o: layer_profile(profile(signed=True), **{"width": "column", **o}),
    "profile, log": lambda **o: layer_profile(profile(), scale="log", **o),
    "profile of 60": lambda **o: layer_profile(profile(60), **o),
    "series of profiles": lambda **o: layer_profile(profile(20, ("before", "after training")), **o),
    "flow": lambda **o: relevance_flow(relevance(), **o),
    "flow of 66": lambda **o: relevance_flow(relevance(66), **o),
    "top inputs": lambda **o: top_inputs(tops(), **o),
    "top inputs, cropped": lambda **o: top_inputs(tops(6, 8, 30, 1, layer=LONG), show="crop", count=8, **o),
    "made": lambda **o: feature_visualization(made(3, 3, 9, 9), **o),
    "made, copies and curve": lambda **o: feature_visualization(
        made(6, 3, 9, 7, targets=(LONG,) * 3 + ("unit 3",) * 3), curve=True, **o
    ),
    "made series": lambda **o: feature_visualization(made(2, 30, 5, axes=("batch", "time", "feature")), columns=2, **o),
    "made latents": lambda **o: feature_visualization(made(1, 12, 1, 1, bounds=None), **o),
    "states": lambda **o: recurrent_states(recurrent(), 0, **o),
    "states, hidden": lambda **o: recurrent_states(recurrent(), quantities=["hidden"], reverse=True, **o),
    "field": lambda **o: receptive_field(field(12, 9), **o),
    "field of a series": lambda **o: receptive_field(field(30), **o),
    "attention": lambda **o: attention(looks(), 0, **o),
    "attention of 12 heads": lambda **o: attention(looks(3, 12, 20), 0, **o),
    "attention, named": lambda **o: attention(looks(1, 4, 7), 0, heads="mean", labels=TOKENS[0], **o),
    "attention, many tokens": lambda **o: attention(looks(1, 1, 90, tokens=[["x"] * 90] * 2), 0, **o),
    "traversal": lambda **o: latent_traversal(traversal(3, 8, 8), **o),
    "traversal of series": lambda **o: latent_traversal(traversal(30, move="add"), count=2, labels=[LONG, "b"], **o),
    "curve": lambda **o: faithfulness_curve(scored(), **o),
    "12 curves": lambda **o: faithfulness_curve(
        [scored(seed=seed) for seed in range(12)], labels=[f"{LONG[: 20 + seed]}" for seed in range(12)], **o
    ),
    "curves in panels": lambda **o: faithfulness_curve(
        [scored(name, seed=seed) for name in ("insertion", "deletion") for seed in range(4)],
        labels=[LONG[: 30 + seed] for seed in range(4)] * 2,
        panels=["insertion"] * 4 + ["deletion"] * 4,
        controls=[LONG[:33]],
        **o,
    ),
    "board": lambda **o: leaderboard(board(), **o),
    "board, long names": lambda **o: leaderboard(board(names=PATHS[:5]), **o),
    "board of 40": lambda **o: leaderboard(board(40), **o),
    "boards": lambda **o: leaderboard([board(), board(samples=5, target="class 8")], **o),
    "board of 3 metrics": lambda **o: leaderboard(
        board(metrics=("insertion", "deletion", "road"), higher=(True, False, False)),
        metric=("insertion", "deletion", "road"),
        **o,
    ),
    "methods by pictures": lambda **o: method_grid([images(6), images(6, method=LONG[:40], signed=False)], **o),
    "8 methods by 2 pictures": lambda **o: method_grid(
        {name: images(2, 120, method=name) for name in PATHS[:8]}, board=board(8, 2, names=PATHS[:8]), **o
    ),
    "flow, narrow": lambda **o: relevance_flow(ledger(5, 3), None, **{"width": "column", **o}),
    "ranking": lambda **o: sensitivity(ranking(270, signed=True), **o),
    "ranking of all": lambda **o: sensitivity(ranking(270, interval=True), count=None, **o),
    "ranking, series": lambda **o: sensitivity(ranking(12, ("first order", "total order"), interval=True), **o),
    "ranking, long names": lambda **o: sensitivity(ranking(10), labels=PATHS[:10], **{"width": "column", **o}),
    "matrix": lambda **o: matrix(grid(30, 30, ("layer", "layer"), signed=False, names=PATHS), **o),
    "matrix of positions": lambda **o: matrix(grid(30, 7), labels=(PATHS[:30], TOKENS[0]), **o),
    "matrix of 200": lambda **o: matrix(grid(200, 200, ("layer", "layer"), names=PATHS), **o),
    "matrix of 4096": lambda **o: matrix(grid(12, 4096), clip=99, **o),
    "matrix of 4": lambda **o: matrix(grid(2, 2), **o),
    "channels": lambda **o: channels(maps(1, 32, 6, 6), **o),
    "channels, strongest": lambda **o: channels(maps(1, 2000, 7, 5, layer=LONG), count=40, order="strength", **o),
    "channels of 1280": lambda **o: channels(maps(1, 1280, 4, 4), **o),
    "channels of tokens": lambda **o: channels(maps(1, 60, 30, axes=("batch", "unit", "token")), **o),
    "channels of dense": lambda **o: channels(maps(1, 90), labels=PATHS[:45] * 2, **o),
    "text": lambda **o: tokens(attribution(1, 7, tokens=TOKENS), **o),
    "text, narrow": lambda **o: tokens(attribution(1, 60, tokens=[["Ġword", LONG] * 30]), **{"width": 1.6, **o}),
    "text of 4096": lambda **o: tokens(attribution(1, 4096, tokens=[["Ġx"] * 4096], signed=False), count=90, **o),
    "time": lambda **o: timeseries(attribution(2, 50, 12, inputs=random(2, 50, 12)), 0, **o),
    "time, one": lambda **o: timeseries(
        attribution(2, 5000, 1, inputs=random(2, 5000, 1)), rate=50, labels=[LONG], **o
    ),
    "map of layers": lambda **o: model_map(table(), profile(6, signed=True), **o),
    "map of 120 layers": lambda **o: model_map(table(66), quantity="time", **o),
    "map, cut": lambda **o: model_map(table(30), depth=3, **{"width": "column", **o}),
    "map, log": lambda **o: model_map(table(20), profile(20, ("a", "b")), series="b", scale="log", **o),
    "curves": lambda **o: curves(curve(("PGD", "FGSM")), **o),
    "curves of 30": lambda **o: curves(curve(PATHS[:30]), **o),
    "curves, symlog": lambda **o: curves(curve(), scale="symlog", **o),
    "training": lambda **o: training(history(), **o),
    "training of 66 layers, 900 steps": lambda **o: training(history(900, 66, logged=("loss", "accuracy", LONG)), **o),
    "training, 1 step": lambda **o: training(history(1, 2, logged=()), "activation mean", **o),
    "gradient flow": lambda **o: gradient_flow(history(), **o),
}
EACH = pytest.mark.parametrize("kind", FIGURES)
KINDS: tuple[str, ...] = ("image", "tokens", "grid of 1", "2 methods", "mosaic", "profile", "flow", "top inputs")
ONE_PANEL = ("ranking", "matrix", "curves", "training", "gradient flow", "curve", "board")
KINDS += ("made", "states", "field", "attention", "traversal", "channels", "text", "time", "map of layers", *ONE_PANEL)
KINDS += ("methods by pictures",)


@pytest.fixture(autouse=True)
def no_pyplot_figure_is_opened_or_drawn_into(users_figure):
    """Whatever a test of this file draws."""
    yield
    assert pyplot.get_fignums() == [users_figure.number]
    (axes,) = users_figure.axes
    assert not axes.has_data() and not users_figure.texts


@pytest.fixture(scope="module")
def users_figure():
    """A figure of pyplot that the user has open."""
    mine, _ = pyplot.subplots()
    yield mine
    pyplot.close(mine)


@functools.cache
def drawn(kind):
    return FIGURES[kind]()


@EACH
def test_all_text_lies_inside_and_none_is_tiny(kind):
    plot = drawn(kind)
    assert text_outside(plot) == []
    assert min(artist.get_fontsize() for artist in plot.fig.findobj(Text) if artist.get_text()) >= 6


def test_the_check_of_text_finds_text_outside():
    plot = FIGURES["image"]()
    plot.fig.text(0.9, 0.5, "far too long for this place")
    assert [text for text, *_ in text_outside(plot)] == ["far too long for this place"]


@EACH
def test_texts_over_panels_do_not_overlap_each_other(kind):
    assert overlapping(drawn(kind)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_width_is_the_one_asked_for(kind):
    assert FIGURES[kind](width=5).fig.get_size_inches()[0] == pytest.approx(5.0)


@pytest.mark.parametrize("kind", (*KINDS, "1 method"))
def test_a_long_title_is_broken_into_lines_inside_a_column(kind):
    plot = FIGURES[kind](title=LONG, width="column")
    assert plot.fig.get_size_inches()[0] == pytest.approx(3.25)
    assert text_outside(plot) == []
    (title,) = (text for text in texts(plot) if text.replace("\n", " ").startswith(LONG[:30]))
    assert "".join(title.split()) == "".join(LONG.split())


def test_settings_of_the_user_neither_change_a_figure_nor_are_changed(tmp_path):
    plain = FIGURES["profile"]().save(tmp_path / "plain.png").read_bytes()
    mine = {"font.size": 20, "axes.titlesize": 30, "xtick.labelsize": 25, "font.family": ["serif"], "pdf.fonttype": 3}
    with matplotlib.rc_context(mine):
        before = dict(matplotlib.rcParams)
        assert FIGURES["profile"]().save(tmp_path / "styled.png").read_bytes() == plain
        assert dict(matplotlib.rcParams) == before


def test_settings_come_back_after_an_error():
    before = dict(matplotlib.rcParams)
    with pytest.raises(PlotError):
        compare_methods([images()] * 3, columns=4, width=1)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "kind",
    ["image", "series", "tokens", "vector", "long vector", "profile", "profile, log", "flow", "channels", "text",
     *ONE_PANEL],
)  # fmt: skip
def test_given_axes_are_drawn_into_and_stay_in_place(kind):
    fig = Figure(figsize=(9, 4))
    left, right = fig.subplots(1, 2)
    place = right.get_position().bounds
    plot = FIGURES[kind](ax=right, title="mine")
    assert plot.axes == (right,) and plot.fig is fig
    assert right.has_data() and not left.has_data()
    assert right.get_title(loc="left").split("\n")[0] == "mine"
    assert right.get_position(original=True).bounds == place
    assert fig.get_size_inches().tolist() == [9, 4]
    sizes = {label.get_fontsize() for label in (*right.get_xticklabels(), *right.get_yticklabels())}
    assert sizes <= {6.0} and right.get_axisbelow() is not False
    assert plot._repr_png_() is None and plot._ipython_display_() is None


@pytest.mark.parametrize(
    "kind",
    ["grid of 1", "2 methods", "mosaic of 4", "top inputs", "time", "map of layers", "methods by pictures"],
)
def test_a_given_subfigure_is_drawn_into_and_keeps_its_size(kind):
    fig = Figure(figsize=(16, 8))
    left, right = fig.subfigures(1, 2)
    plot = FIGURES[kind](fig=right)
    assert plot.fig is fig and fig.get_size_inches().tolist() == [16, 8]
    assert not left.axes and set(plot.axes) <= set(right.axes)
    assert all(axes.get_window_extent().x0 >= 0.5 * fig.bbox.width for axes in plot.axes)
    assert text_outside(plot) == []


def test_a_given_figure_that_is_too_small_is_refused():
    with pytest.raises(PlotError, match=r"the figure given is 6.00 x 1.00 inches; .* need about"):
        FIGURES["mosaic of 4"](fig=Figure(figsize=(6, 1)))


@pytest.mark.parametrize(
    "option, value, expected", [("ax", "here", "Axes, not a str"), ("fig", 3, "SubFigure, not a int")]
)
def test_other_things_than_axes_and_figures_are_refused(option, value, expected):
    kind = "image" if option == "ax" else "mosaic"
    with pytest.raises(ValueError, match=expected):
        FIGURES[kind](**{option: value})


def test_importing_plotting_does_not_load_matplotlib():
    code = "import layerlens.plotting, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0
