"""A method, a measure, a rule and a figure, each as one file outside the package through `layerlens.extend`."""

import importlib.util
import inspect
import re
import typing
from pathlib import Path

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens, extend
from layerlens.analyzers.common.measure_registry import MEASURES
from layerlens.analyzers.common.registry import METHODS
from layerlens.errors import UnknownOption
from layerlens.plotting.plot import FIGURES
from tests.cases import normal

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("write-your-own-*.md"))
METHOD = """
from layerlens.extend import gradients, method, scoring

@method(family="gradient", passes="1 gradient", source="a user")
def squared_gradient(model, x, *, target=None, power=2, forward=None):
    '''Raise the gradient to a power.'''
    with scoring(model, x, target, forward=forward) as scorer:
        score, found = gradients(scorer, scorer.start())
        values = {name: value**power for name, value in found.items()}
        return scorer.attribution(values, method="squared_gradient", settings={"power": power}, score=score)
"""
MEASURE = """
from layerlens.extend import LayerProfile, Probe, borrowed, measure

@measure(question="responds_to_input", cost="1 F", source="a user")
def largest(model, x, layers=None, *, scale=1.0, forward=None):
    '''Measure the largest activation of each layer.'''
    with borrowed(model), Probe(model, layers) as record:
        x.run(model, forward)
    values = extend_stack([call.output.abs().max() * scale for call in record.order])
    return LayerProfile("largest activation", tuple(c.layer for c in record.order), values, "1", False, "exact", {})

from torch import stack as extend_stack
"""
RULE = """
import torch
from layerlens.extend import Kind, Row, register

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g

handle = register(Cube, Row(Kind.RATIO, lambda ctx, x: (ctx.saved_tensors[0] ** 2, 0.0)))
"""
FIGURE = """
from layerlens.extend import Canvas, LayerProfile, Plot, figure

@figure(LayerProfile, kind="dots")
def dots(profile, *, size=3.0, width="column", title=None, ax=None) -> Plot:
    '''Draw a dot for each layer.'''
    with Canvas(width=width, ax=ax) as canvas:
        canvas.title(title, profile.quantity)
        canvas.panel(height=1.0).plot(range(len(profile)), profile.numpy(), "o", markersize=size)
        return canvas.finish({"values": profile.numpy()})
"""


@pytest.fixture
def registries():
    """Forget afterwards what a test registers."""
    kept = dict(METHODS), dict(MEASURES), {of: dict(kinds) for of, kinds in FIGURES.items()}
    yield
    for table, before in zip((METHODS, MEASURES, FIGURES), kept, strict=True):
        table.clear()
        table.update(before)


@pytest.fixture
def user_file(tmp_path, registries):
    """Import a file of a user."""

    def load(text):
        (tmp_path / "mine.py").write_text(text)
        spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def test_a_method_in_one_file(user_file):
    user_file(METHOD)
    lens, x = Lens(net()), normal(2, 4)
    found = lens.saliency.squared_gradient(x, target=1, power=3)
    torch.testing.assert_close(found.values, lens.saliency.gradient(x, target=1).values ** 3)
    assert torch.equal(lens.saliency(x, target=1, method="squared_gradient", power=3).values, found.values)
    assert "squared_gradient" in dir(lens.saliency) and "squared_gradient" in lens.saliency.methods()
    assert "power" in inspect.signature(lens.saliency.squared_gradient).parameters
    assert "what to score" in inspect.getdoc(lens.saliency.squared_gradient)
    with pytest.raises(UnknownOption, match="Closest: power"):
        lens.saliency.squared_gradient(x, powr=3)


def test_a_measure_in_one_file(user_file):
    user_file(MEASURE)
    lens, x = Lens(net()), normal(2, 4)
    found = lens.sensitivity.largest(x, ["0", "2"], scale=2.0)
    assert float(found.values[0]) == pytest.approx(2 * float(lens.model[0](x).abs().max().detach()))
    assert torch.equal(lens.sensitivity(x, ["0", "2"], method="largest", scale=2.0).values, found.values)


def test_a_rule_in_one_file(user_file):
    module = user_file(RULE)

    class Cubes(nn.Sequential):
        def forward(self, x):
            return self[1](module.Cube.apply(self[0](x)))

    try:
        torch.manual_seed(0)
        model = Cubes(nn.Linear(4, 5), nn.Linear(5, 3)).double()
        found = Lens(model).relevance(normal(2, 4).double(), target=1, strict=True)
        assert "Cube" in found.rules_used and float(found.ledger.relative.max()) < 1e-9
    finally:
        module.handle.remove()


def test_a_figure_in_one_file(user_file):
    user_file(FIGURE)
    profile = Lens(net()).jacobian(normal(2, 4))
    drawn = profile.plot("dots", size=5.0)
    assert drawn.data["values"].shape == (len(profile),)
    assert "size" in inspect.signature(profile.plot.dots).parameters
    assert "dots" in dir(profile.plot)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages_import_from_extend_only(page):
    lines = re.findall(r"^\s*(?:from|import) (layerlens(?:\.\w+)*)", page.read_text(), re.MULTILINE)
    assert set(lines) <= {"layerlens", "layerlens.extend", "layerlens.demo.embedded"}
    assert "layerlens.extend" in lines


def test_every_name_is_there_and_documented():
    assert len(PAGES) == 3
    for name in extend.__all__:
        value = getattr(extend, name)
        kind = typing.get_origin(value) is None and inspect.isclass(value)  # Python 3.10 takes a Callable[...] for one
        assert value.__doc__ or not (inspect.isfunction(value) or kind), name
    assert layerlens.extend is extend
