"""No figure draws numbers that are not there, or takes the pictures of numpy for those of torch."""

import dataclasses

import numpy as np
import pytest
import torch

from layerlens import plotting
from layerlens.errors import PlotError
from layerlens.results import Attribution

from .helpers import made, random
from .test_every_figure import EXAMPLES, OF_SEVERAL

SHOWS_NAN = {"LayerProfile", "LayerTable", "Ranking", "Matrix", "Curve", "TrainingHistory"}
"""Results whose figures have a mark for what is no number."""
NAMED = {
    "Attribution": "values", "Relevance": "values", "ActivationMaps": "values", "TopInputs": "inputs",
    "RecurrentStates": "states", "AttentionWeights": "weights", "LatentTraversal": "outputs",
    "ReceptiveField": "effective", "FeatureVisualization": "images", "FaithfulnessCurve": "scores",
    "Leaderboard": "values", "GroupEffects": "effect", "LayerProfile": "values", "Ranking": "values",
    "Matrix": "values", "Curve": "values", "TrainingHistory": "values", "UnitStatistics": "zeros",
    "AdversarialExamples": "inputs", "Influence": "values", "Contributions": "direct", "AttributionGraph": "sent",
    "AnswerAttribution": "values",
    "SamplingAttribution": "by_step",
}  # fmt: skip
"""The field of each result that holds what is drawn."""
OTHERS = {"Ledger", "LayerTable", "GradientCheck", "GroupComparison", "Generation", "Steering"}
"""Made of other results, of numbers, or of entries; tested where they are drawn."""
EACH = pytest.mark.parametrize(
    "name, kind", [pair for pair in EXAMPLES if pair[0] not in OTHERS], ids=lambda part: part
)


def changed(value, change):
    """The same value with every tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return {name: changed(part, change) for name, part in value.items()} if isinstance(value, dict) else value


def with_values(name, kind, change):
    result = EXAMPLES[name, kind]()
    return dataclasses.replace(result, **{NAMED[name]: changed(getattr(result, NAMED[name]), change)})


def spoilt(tensor, number):
    tensor = tensor.clone()
    tensor.flatten()[0] = number
    return tensor


def test_every_result_is_asked():
    assert {name for name, _ in EXAMPLES} == set(NAMED) | OTHERS


@EACH
@pytest.mark.parametrize("number", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)])
def test_what_is_no_number_is_refused_or_marked(name, kind, number):
    result = with_values(name, kind, lambda tensor: spoilt(tensor, number))
    shown = (
        (name in SHOWS_NAN or kind == "matrix") and kind != "network" and not (kind == "matrix" and np.isinf(number))
    )
    if kind == "importance" or shown:
        plot = result.plot(kind)
        written = " ".join(text.get_text() for text in plot.fig.findobj(lambda artist: hasattr(artist, "get_text")))
        assert any(word in written for word in ("NaN", "infinite", "∞", "without a number")), written
        return
    if (name, kind) in {("Relevance", "flow"), ("Relevance", "profile")}:
        return  # drawn from the ledger and the profile
    with pytest.raises(PlotError, match=r"NaN|infinit|not all finite") as error:
        result.plot(kind)
    assert len(str(error.value)) < 400


@pytest.mark.slow
@EACH
def test_gradients_and_half_precision_are_drawn_alike(name, kind):
    plain = EXAMPLES[name, kind]().plot(kind).png(40)
    attached = with_values(name, kind, lambda t: t.requires_grad_() if t.is_floating_point() else t)
    assert attached.plot(kind).png(40) == plain
    with_values(name, kind, lambda t: t.detach().bfloat16() if t.is_floating_point() else t).plot(kind)


@pytest.mark.slow
@EACH
def test_zeros_everywhere_are_drawn_or_refused_by_name(name, kind):
    result = with_values(name, kind, lambda t: torch.zeros_like(t) if t.is_floating_point() else t)
    try:
        result.plot(kind)
    except PlotError as error:
        assert "zero" in str(error) or "log scale" in str(error)


@pytest.mark.parametrize(
    "pictures", [lambda x: x, lambda x: 255 * x, lambda x: (x - 0.5) / 0.25], ids=["1", "255", "std"]
)
@pytest.mark.parametrize("figure", ["heatmap", "grid"])
def test_pictures_of_any_range_lie_under_a_map_alike(figure, pictures):
    x = random(1, 3, 12, 12, seed=4).sigmoid()
    x[0, :, 0, :4], x[0, :, 1, :4] = 0, 1  # the ends of the range
    one = Attribution(random(1, 3, 12, 12), None, True, "score", "", "gradient", {}, torch.ones(1), inputs=pictures(x))
    shown = one.plot(figure).axes[0].images[0].get_array()
    plain = dataclasses.replace(one, inputs=x).plot(figure).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, plain, atol=0.02)


@pytest.mark.parametrize("draw", [plotting.heatmap, plotting.overlay_grid, lambda one: plotting.compare_methods([one])])
def test_channels_last_are_refused_with_the_remedy(draw):
    values = random(1, 12, 13, 3)
    one = Attribution(values, None, True, "score", "", "gradient", {}, torch.ones(1), inputs=values)
    with pytest.raises(PlotError, match=r"looks like \(batch, height, width, channel\).*permute\(0, 3, 1, 2\)"):
        draw(one)


@pytest.mark.parametrize("draw", [plotting.heatmap, plotting.overlay_grid, lambda one: plotting.compare_methods([one])])
def test_a_map_of_another_size_than_its_input_is_refused(draw):
    one = Attribution(
        random(1, 3, 12, 12), None, True, "score", "", "gradient", {}, torch.ones(1), inputs=random(1, 3, 6, 6)
    )
    with pytest.raises(PlotError, match=r"12 x 12, but its input has shape .*interpolate"):
        draw(one)


def test_figures_of_several_refuse_what_is_no_number():
    broken = made(2, 3, 6, 6, targets=("unit 0 of blocks.0", "unit 2 of blocks.0"))
    broken.images[0, 0, 0, 0] = torch.nan
    from .helpers import images, top_inputs

    maps = images()
    maps.values[0, 0, 0, 0] = torch.nan
    for name, draw in {
        "feature_gallery": lambda: plotting.feature_gallery(broken, top_inputs(3, 2)),
        "compare_methods": lambda: plotting.compare_methods([images(), maps]),
        "method_grid": lambda: plotting.method_grid({"a": images(), "b": maps}),
    }.items():
        assert name in OF_SEVERAL
        with pytest.raises(PlotError, match="holds NaN or infinity"):
            draw()
