"""What holds of each figure that a result can draw: a table with one example of every kind."""

import dataclasses
import functools
import hashlib
import io
import itertools
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from layerlens import plotting
from layerlens.plotting import FIGURES, figures_of
from layerlens.results import GradientCheck, Influence, LayerGradient, Matrix, UnitStatistics
from tests.results.examples import answer

from .helpers import (
    adversarial,
    attention,
    attribution,
    attribution_graph,
    contributions,
    curve,
    effects,
    faithfulness,
    field,
    generation,
    grid,
    groups,
    history,
    images,
    leaderboard,
    ledger,
    made,
    maps,
    profile,
    random,
    ranking,
    recurrent,
    relevance,
    sampled,
    steering,
    table,
    text_outside,
    top_inputs,
    traversal,
)

TOKENS = [["[CLS]", "a", "$5 and $6", "##ing", "\n", "", "end"]]


def influence():
    labels = torch.arange(9) % 3
    return Influence(random(2, 9).double(), labels, labels[:2], False, "tracin", {})


def pairs():
    values, names = random(5, 5).double(), tuple("abcde")
    return Matrix("interaction", names, names, values + values.T, ("feature", "feature"), "score", True, "SII", {})


def text():
    return attribution(1, 7, tokens=TOKENS)


def unit_statistics():
    columns = [{f"layer{k}": random(6).abs().double() for k in range(3)} for _ in range(6)]
    return UnitStatistics(*columns, samples=100, settings={})


def gradient_check():
    layers = tuple(LayerGradient(f"layer{k}", 0, "Linear", 10.0**-k, 1e-9, k > 1, "") for k in range(3))
    return GradientCheck(*(random(2, 3).double() for _ in range(4)), 1e-3, "differences in float64", "cat", layers)


def series():
    return attribution(1, 30, 3, inputs=random(1, 30, 3))


def features():
    return attribution(9, 4, inputs=random(9, 4))


EXAMPLES = {
    ("Attribution", "heatmap"): images,
    ("Attribution", "grid"): images,
    ("Attribution", "tokens"): text,
    ("Attribution", "timeseries"): series,
    ("Relevance", "heatmap"): relevance,
    ("Relevance", "grid"): relevance,
    ("Relevance", "tokens"): text,  # a Relevance is an Attribution, and drawn by the same functions
    ("Relevance", "timeseries"): series,
    ("Attribution", "beeswarm"): features,
    ("Attribution", "waterfall"): features,
    ("Attribution", "bars"): features,
    ("Attribution", "importance"): features,
    ("Attribution", "dependence"): features,
    ("Relevance", "beeswarm"): features,
    ("Relevance", "waterfall"): features,
    ("Relevance", "bars"): features,
    ("Relevance", "importance"): features,
    ("Relevance", "dependence"): features,
    ("Relevance", "flow"): relevance,
    ("Relevance", "profile"): relevance,
    ("Contributions", "contributions"): lambda: contributions(3),
    ("AttributionGraph", "graph"): lambda: attribution_graph(3),
    ("ActivationMaps", "mosaic"): lambda: maps(1, 9, 4, 4),
    ("ActivationMaps", "channels"): lambda: maps(1, 9, 4, 4),
    ("LayerProfile", "profile"): lambda: profile(4),
    ("LayerTable", "map"): table,
    ("Ledger", "flow"): lambda: ledger(4),
    ("TopInputs", "inputs"): lambda: top_inputs(2, 2),
    ("RecurrentStates", "states"): lambda: recurrent(8, 5, batch=1),
    ("AttentionWeights", "maps"): lambda: attention(1, 2, batch=1),
    ("LatentTraversal", "rows"): lambda: traversal(1, 4, 4, rows=2, steps=3),
    ("ReceptiveField", "field"): lambda: field(9, 9),
    ("FeatureVisualization", "images"): lambda: made(2, 3, 6, 6),
    ("FaithfulnessCurve", "curve"): faithfulness,
    ("AdversarialExamples", "examples"): lambda: adversarial(2, 3, 8, 8),
    ("Leaderboard", "means"): leaderboard,
    ("GradientCheck", "profile"): gradient_check,
    ("GroupComparison", "places"): groups,
    ("GroupComparison", "layers"): groups,
    ("GroupComparison", "separation"): groups,
    ("GroupEffects", "effects"): effects,
    ("Ranking", "sensitivity"): lambda: ranking(4),
    ("Matrix", "matrix"): lambda: grid(3, 4),
    ("Matrix", "network"): pairs,
    ("SamplingAttribution", "sampling"): sampled,
    ("Generation", "considered"): generation,
    ("Generation", "sources"): generation,
    ("Generation", "logit_lens"): generation,
    ("AnswerAttribution", "sources"): answer,
    ("AnswerAttribution", "matrix"): answer,
    ("AnswerAttribution", "network"): pairs,
    ("Steering", "effect"): steering,
    ("Steering", "side_effects"): steering,
    ("Influence", "influence"): influence,
    ("Curve", "curves"): lambda: curve(("PGD", "FGSM")),
    ("TrainingHistory", "training"): lambda: history(6, 4),
    ("TrainingHistory", "gradient_flow"): lambda: history(6, 4),
    ("UnitStatistics", "profile"): unit_statistics,
}
OF_SEVERAL = {
    "compare_methods": lambda: plotting.compare_methods([images(), images(method="other", seed=1)]),
    "method_grid": lambda: plotting.method_grid({"a": images(), "b": images(seed=1)}),
    "feature_gallery": lambda: plotting.feature_gallery(
        made(2, 3, 6, 6, targets=("unit 0 of blocks.0", "unit 2 of blocks.0")), top_inputs(3, 2)
    ),
}
"""Figures that no single result draws."""
SAME = {(example, kind): (name, kind) for (name, kind), example in reversed(EXAMPLES.items())}
"""One of the pairs that draw the same figure of the same result."""
DRAW = {
    **{pair: functools.partial(lambda pair: EXAMPLES[pair]().plot(pair[1]), pair) for pair in SAME.values()},
    **{("several", name): draw for name, draw in OF_SEVERAL.items()},
}
NO_PLOT = {
    "FIGURES",
    "Plot",
    "figure",
    "figures_of",
    "plot",
    "plot_method",
    "style",
    "through",
    "thumbnail",
    "tokens_html",
    "sources_html",
    "graph_html",
}
QUICK = {
    ("Attribution", "heatmap"),
    ("Attribution", "grid"),
    ("Relevance", "flow"),
    ("LayerProfile", "profile"),
    ("Ranking", "sensitivity"),
    ("Matrix", "matrix"),
    ("Curve", "curves"),
    ("TrainingHistory", "training"),
    ("TrainingHistory", "gradient_flow"),
    ("FaithfulnessCurve", "curve"),
    ("Leaderboard", "means"),
    ("several", "method_grid"),
}
"""Figures whose PNG and SVG are compared in the fast tests too."""
EACH = pytest.mark.parametrize("name, kind", DRAW, ids=lambda part: part)


@functools.cache
def drawn(name, kind):
    """The figure; to draw it leaves its result alone."""
    result = EXAMPLES.get((name, kind), lambda: None)()
    if result is None:
        return DRAW[name, kind]()
    before = tensors(result)
    plot = result.plot(kind)
    assert all(torch.equal(one, two) for one, two in zip(before, tensors(result), strict=True))
    return plot


def tensors(result):
    values = (getattr(result, field.name) for field in dataclasses.fields(result))
    return [value.clone() for value in values if isinstance(value, torch.Tensor)]


def test_every_figure_has_an_example():
    assert set(EXAMPLES) == {(of.__name__, kind) for of in FIGURES for kind in figures_of(of)}
    of_one = {draw.__name__ for figures in FIGURES.values() for draw in figures.values()}
    assert set(plotting.__all__) - NO_PLOT == {name for name in of_one if not name.startswith("_")} | set(OF_SEVERAL)


@EACH
def test_text_lies_inside_and_is_no_smaller_than_6_points(name, kind):
    plot = drawn(name, kind)
    assert text_outside(plot) == []
    assert min(artist.get_fontsize() for artist in plot.fig.findobj(Text) if artist.get_text()) >= 6


@EACH
def test_a_pdf_has_truetype_fonts_alone(name, kind, tmp_path):
    plot = drawn(name, kind)
    content = plot.save(tmp_path / "a.pdf", dpi=60).read_bytes()
    assert b"/FontFile2" in content and b"/CIDFontType2" in content and b"/Type3" not in content
    assert b"CreationDate" not in content and b"Producer" not in content
    if (name, kind) in QUICK:
        assert_same_files(plot, DRAW[name, kind](), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name, kind", [pair for pair in DRAW if pair not in QUICK], ids=lambda part: part)
def test_a_file_has_the_same_bytes_each_time(name, kind, tmp_path):
    assert_same_files(DRAW[name, kind](), drawn(name, kind), tmp_path)


def assert_same_files(one, other, folder):
    for suffix in ("pdf", "png", "svg"):
        first = one.save(folder / f"a.{suffix}", dpi=60).read_bytes()
        assert other.save(folder / f"b.{suffix}", dpi=60).read_bytes() == first, suffix


def digests():
    """A line for each figure and suffix."""
    with tempfile.TemporaryDirectory() as folder:
        for (name, kind), suffix in itertools.product(DRAW, ("pdf", "png", "svg")):
            content = drawn(name, kind).save(f"{folder}/a.{suffix}", dpi=60).read_bytes()
            yield f"{name} {kind} {suffix} {hashlib.sha256(content).hexdigest()}"


@pytest.mark.slow
def test_another_process_writes_the_same_bytes():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from tests.plotting.test_every_figure import digests; print(*digests(), sep='\\n')"
    )
    root = str(pathlib.Path(__file__).parents[2])
    other = subprocess.run([sys.executable, "-c", program, root], capture_output=True, text=True, check=True)
    own = list(digests())
    assert other.stdout.splitlines() == own and len(set(own)) == 3 * len(DRAW)


@EACH
def test_a_notebook_that_is_dark_shows_white_paper(name, kind):
    plot = drawn(name, kind)
    pixels = np.array(Image.open(io.BytesIO(plot.png(60))).convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    assert (pixels[0] == 255).all() and (pixels[:, 0] == 255).all() and (pixels[-1] == 255).all()
