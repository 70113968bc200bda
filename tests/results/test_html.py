"""How results show themselves in a notebook, and hand over their arrays."""

import base64
import dataclasses
import html.parser
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import layerlens
from layerlens import plotting
from tests.cases import normal
from tests.plotting.helpers import attention, attribution, images, profile, random
from tests.results.examples import RESULTS, SETTINGS, matrix

VOID = {"img", "br"}


class Page(html.parser.HTMLParser):
    """Checks that tags close, and keeps them with their attributes and texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def pictures(self):
        return [attrs for tag, attrs in self.tags if tag == "img"]


@pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS)
def test_every_result_is_a_table_without_script_or_anything_to_load(make):
    result = make()
    text = result._repr_html_()
    page = Page(text)
    tags = {tag for tag, _ in page.tags}
    assert "table" in tags and not tags & {"script", "link", "style", "iframe", "object"}
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on") or name in ("href", "class", "id")]
        assert attrs.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    drawn = bool(plotting.figures_of(type(result)))
    shown = bool(page.pictures()) or any(said.startswith("no picture: ") for said in page.texts)
    assert shown == (drawn and type(result).__name__ not in ("LayerTable", "AnswerAttribution"))


def test_the_picture_is_small_and_its_text_has_the_numbers():
    result = images()
    (picture,) = Page(result._repr_html_()).pictures()
    content = base64.b64decode(picture["src"].split(",")[1])
    with Image.open(io.BytesIO(content)) as image:
        assert image.size[0] == pytest.approx(1.5 * int(picture["width"]), abs=2) and image.size[0] < 1000
    assert len(content) < 100_000
    assert picture["alt"].startswith("method: Gradient; target: class 7; values: float32 (2, 3, 12, 12), in score")
    assert "sample 0 of 2" in Page(result._repr_html_()).texts
    assert result._repr_html_() == result._repr_html_()


def test_what_it_took_is_told():
    net, x = torch.nn.Linear(3, 2), torch.arange(3.0)[None]
    found = layerlens.saliency(net, x, target=0, method="smooth_grad", samples=2)
    assert "2 gradients (samples)" in Page(found._repr_html_()).texts
    assert layerlens.relevance(net, x, target=0).cost == "about 3 gradients"
    both = found + layerlens.saliency(net, x, target=1, method="smooth_grad", samples=2)
    assert both.cost == "2 gradients (samples) and 2 gradients (samples)"
    assert layerlens.saliency(net, x, target=0, method="auto").cost == "6 forward passes (samples)"


def test_tokens_are_shown_as_text():
    result = attribution(1, 3, tokens=[["[CLS]", "good", "<b>"]])
    text = result._repr_html_()
    assert Page(text).pictures() == [] and "<span" in text and "&lt;b&gt;" in text and "<b>" not in text


def test_of_several_inputs_the_first_is_shown_and_of_attention_the_mean():
    both = {"ids": random(2, 3, 5, 5), "row": random(2, 4)}
    result = dataclasses.replace(images(), values=both, inputs=None)
    page = Page(result._repr_html_())
    assert len(page.pictures()) == 1 and "input ids, sample 0 of 2" in page.texts
    assert len(Page(attention(2, 12)._repr_html_()).pictures()) == 1


def test_settings_and_sentences_are_there():
    page = Page(matrix()._repr_html_())
    assert "What it means. What it does not." in page.texts and "settings" in page.texts
    assert {"steps", "baseline"} <= set(page.texts) and repr(SETTINGS["sizes"]) in page.texts


@pytest.mark.parametrize("error", [ValueError("<script>x</script>"), ImportError("no matplotlib"), MemoryError()])
def test_what_cannot_be_drawn_does_not_hide_the_numbers(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(plotting, "thumbnail", fail)
    page = Page(profile()._repr_html_())
    assert "Jacobian norm" in page.texts and not page.pictures()
    assert any(said.startswith("no picture: ") for said in page.texts)


def test_values_that_have_no_picture_say_why():
    result = dataclasses.replace(images(), values=torch.full((2, 3, 12, 12), torch.nan))
    said = [text for text in Page(result._repr_html_()).texts if text.startswith("no picture: ")]
    assert len(said) == 1 and "NaN" in said[0] and re.search(r"target", result._repr_html_())


def test_a_stop_is_not_swallowed(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(plotting, "thumbnail", stop)
    with pytest.raises(KeyboardInterrupt):
        profile()._repr_html_()


# -- arrays ------------------------------------------------------------------------------------------------------------

MAIN = {
    "Attribution": lambda result: result.values,
    "Relevance": lambda result: result.values,
    "EnsembleAttribution": lambda result: result.values,
    "ActivationMaps": lambda result: result.values,
    "LayerProfile": lambda result: result.values,
    "Ledger": lambda result: torch.stack([entry.amount for entry in result.entries]).double(),
    "Entry": lambda result: result.amount,
    "TopInputs": lambda result: result.values,
    "AttentionWeights": lambda result: result.weights,
    "FeatureVisualization": lambda result: result.images,
    "RecurrentStates": lambda result: result.states,
    "ReceptiveField": lambda result: result.effective,
    "LatentTraversal": lambda result: result.outputs,
    "FaithfulnessCurve": lambda result: result.scores,
    "AdversarialExamples": lambda result: result.inputs,
    "Leaderboard": lambda result: result.values,
    "Ranking": lambda result: result.values,
    "Generation": lambda result: result.log_p,
    "SamplingAttribution": lambda result: result.by_step,
    "Steering": lambda result: result.effect,
    "Influence": lambda result: result.values,
    "Contributions": lambda result: result.direct,
    "AttributionGraph": lambda result: result.sent,
    "Matrix": lambda result: result.values,
    "AnswerAttribution": lambda result: result.values,
    "Curve": lambda result: result.values,
    "LayerHealth": lambda result: result.values,
    "LogitLens": lambda result: result.values,
    "TrainingHistory": lambda result: result.values,
    "UnitStatistics": lambda result: {
        name: getattr(result, name) for name in ("mean", "std", "low", "high", "zeros", "not_finite")
    },
    "GradientCheck": lambda result: result.gap,
    "GroupEffects": lambda result: result.effect,
    "GroupComparison": lambda result: {name: one.effect for name, one in result.activations.items()},
    "ErrorExplanation": lambda result: {name: one.effect for name, one in result.activations.items()},
}
WITHOUT = {
    "LayerTable",
    "Routes",
    "RouteComparison",
    "LayerGradient",
    "Finding",
    "ModelChecks",
}  # words and counts of several kinds


def test_every_result_with_a_main_array_is_in_the_table():
    assert set(MAIN) | WITHOUT == set(RESULTS)
    assert not [name for name in WITHOUT if hasattr(RESULTS[name](), "numpy")]


@pytest.mark.parametrize("name", MAIN)
def test_numpy_hands_over_the_main_array(name):
    result = RESULTS[name]()

    def same(array, tensor):
        if isinstance(tensor, dict):
            assert list(array) == list(tensor)
            for key in tensor:
                same(array[key], tensor[key])
        else:
            assert isinstance(array, np.ndarray) and np.array_equal(array, tensor.numpy(), equal_nan=True)

    same(result.numpy(), MAIN[name](result))


def test_numpy_takes_bfloat16_and_parts_of_a_graph():
    values = normal(3).bfloat16().requires_grad_()
    assert profile(3).numpy().dtype == np.float32
    assert np.array_equal(dataclasses.replace(profile(3), values=values).numpy(), values.detach().float().numpy())


# -- tables ------------------------------------------------------------------------------------------------------------

NO_TABLE = {
    "ActivationMaps", "AttentionWeights", "FeatureVisualization", "RecurrentStates", "ReceptiveField",
    "LatentTraversal", "GroupEffects", "RouteComparison", "Entry",
    "LayerGradient", "Finding",
}  # fmt: skip
"""Pictures, states and weights of many axes, whose form is an array; parts of a result that has a table."""


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_that_is_a_table_becomes_one(name):
    result = RESULTS[name]()
    assert hasattr(result, "to_pandas") == (name not in NO_TABLE)
    if name not in NO_TABLE:
        table = result.to_pandas()
        assert len(table) > 0 and len(table.columns) > 0 and not table.columns.duplicated().any()


def test_the_table_of_an_attribution_finds_each_value_again():
    result = images()
    table = result.to_pandas()
    assert list(table.columns) == ["sample", *(result.axes or ("", "axis 1", "axis 2", "axis 3"))[1:], "value"]
    assert len(table) == result.tensor.numel()
    for row in (0, 77, len(table) - 1):
        *place, value = table.iloc[row]
        assert float(result.tensor[tuple(int(k) for k in place)]) == value
    several = dataclasses.replace(result, values={"a": normal(2, 3), "b": normal(2, 4, 1)}, inputs=None, axes=None)
    assert several.to_pandas().groupby("input").size().to_dict() == {"a": 6, "b": 8}
    words = attribution(2, 3, tokens=[["x", "y", "z"], ["u", "v", "w"]]).to_pandas()
    assert "".join(words["token text"]) == "xyzuvw"


def test_the_table_of_a_ledger_adds_up_to_the_score():
    result = RESULTS["Relevance"]().ledger
    table = result.to_pandas()
    total = table[[f"sample {row}" for row in range(len(result.score))]].sum().to_numpy()
    assert np.allclose(total, (result.score.double() - result.residual).numpy())
