"""What a layer takes, several layers at once, and layers that take or return tuples; captum is the oracle."""

import warnings

import pytest
import torch
from captum import attr
from torch import nn

import layerlens
from layerlens import input_of
from layerlens.errors import OptionError, SelectionError, TargetError
from tests.cases import normal
from tests.snapshot import Snapshot

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")


class Pair(nn.Module):
    """A layer that takes two tensors and returns two, the second by keyword."""

    def forward(self, a, scale=None):
        return a * scale, (a + scale).tanh()


class Net(nn.Module):
    """Linear, a ReLU that writes into what it takes, a layer with tuples, and a head."""

    def __init__(self, inplace=True):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu, self.pair = nn.Linear(3, 4), nn.ReLU(inplace), Pair()
        self.second = nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.relu(self.first(x))
        one, two = self.pair(hidden, scale=hidden.cos())
        return self.second(one + two**2)


MODEL, X, ZERO = Net().double().eval(), normal(2, 3).double(), torch.zeros(2, 3).double()


def of(method, where, **options):
    before = Snapshot(MODEL, X)
    found = layerlens.saliency(MODEL, X, target=1, method=method, where=where, **options)
    before.check()
    return found


@pytest.mark.parametrize("layer", ["relu", "second"])
def test_methods_at_the_input_of_a_layer(layer):
    plain = Net(inplace=False).double().eval()  # captum's layer methods fail where a ReLU writes into its input
    module, own = getattr(plain, layer), {"target": 1, "attribute_to_layer_input": True}
    taken = {"relu": MODEL.first(X), "second": MODEL.second}[layer]
    taken = taken.detach() if layer == "relu" else _taken(MODEL, "second")
    at_zero = MODEL.first(ZERO).detach() if layer == "relu" else _taken(MODEL, "second", ZERO)
    where = input_of(layer)
    expected = attr.LayerGradientXActivation(plain, module).attribute(X, **own)
    found = of("input_x_gradient", where)
    torch.testing.assert_close(found.tensor, expected)
    assert found.settings["where"] == f"input of {layer}" and found.axes == ("batch", "feature")
    torch.testing.assert_close(of("gradient", where).tensor * taken, expected)
    expected = attr.LayerIntegratedGradients(plain, module).attribute(X, ZERO, n_steps=50, **own)
    options = {"tolerance": float("inf"), "baseline": at_zero}
    torch.testing.assert_close(of("integrated_gradients", where, **options).tensor, expected, rtol=1e-3, atol=1e-3)
    expected = attr.LayerFeatureAblation(plain, module).attribute(X, layer_baselines=0.0, **own)
    torch.testing.assert_close(of("feature_ablation", where).tensor, expected.double())
    expected = attr.InternalInfluence(plain, module).attribute(X, ZERO, n_steps=50, **own)
    torch.testing.assert_close(of("internal_influence", where).tensor, expected)
    expected = attr.LayerConductance(plain, module).attribute(X, ZERO, n_steps=3000, **own)
    found = of("layer_conductance", where, steps=1000, tolerance=float("inf"))
    torch.testing.assert_close(found.tensor, expected, rtol=3e-3, atol=3e-3)


def _taken(model, layer, x=X):
    with layerlens.Probe(model, layer, inputs=True) as record, torch.no_grad():
        model(x)
    return record.calls(layer)[0].inputs[0][0]


def test_deep_lift_at_the_input_of_a_layer():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    expected = attr.LayerDeepLift(net, net[2]).attribute(X, ZERO, target=1, attribute_to_layer_input=True)
    at_zero = net[:2](ZERO).detach()
    found = layerlens.saliency(net, X, target=1, method="deep_lift", where=input_of("2"), baseline=at_zero)
    torch.testing.assert_close(found.tensor, expected)


@pytest.mark.parametrize("method", ["input_x_gradient", "internal_influence", "integrated_gradients", "deep_lift"])
def test_the_arguments_of_a_layer_are_all_attributed(method):
    found = of(method, input_of("pair"))
    assert list(found.values) == ["input of pair/0/0", "input of pair/1/scale"]
    for name, values in found.values.items():
        one = of("input_x_gradient", input_of(name.removeprefix("input of "))).tensor
        if method == "input_x_gradient":
            torch.testing.assert_close(values, one)
        assert values.shape == one.shape and bool(values.any())
    hidden = MODEL.relu(MODEL.first(X)).detach()
    pair = [hidden.clone().requires_grad_(), hidden.cos().requires_grad_()]
    one, two = MODEL.pair(pair[0], scale=pair[1])
    slopes = torch.autograd.grad(MODEL.second(one + two**2)[:, 1].sum(), pair)
    if method == "input_x_gradient":
        for values, slope, tensor in zip(found.values.values(), slopes, pair, strict=True):
            torch.testing.assert_close(values, slope * tensor.detach())


def test_the_tensors_that_a_layer_returns_are_all_attributed():
    expected = attr.LayerConductance(MODEL, MODEL.pair).attribute(X, ZERO, target=1, n_steps=3000)
    found = of("layer_conductance", "pair", steps=1000, tolerance=float("inf"))
    for name, theirs in zip(["pair/0", "pair/1"], expected, strict=True):
        torch.testing.assert_close(found.values[name], theirs, rtol=3e-3, atol=3e-3)
    expected = attr.InternalInfluence(MODEL, MODEL.pair).attribute(X, ZERO, target=1, n_steps=50)
    for values, theirs in zip(of("internal_influence", "pair").values.values(), expected, strict=True):
        torch.testing.assert_close(values, theirs)


def test_several_layers_in_one_pass():
    layers = ["first", input_of("relu"), "pair/0", "second"]
    for method in ("gradient", "input_x_gradient", "layer_conductance", "internal_influence"):
        options = {"tolerance": float("inf")} if method == "layer_conductance" else {}
        found = of(method, layers, **options)
        assert list(found.values) == ["first", "input of relu", "pair/0", "second"]
        for layer, values in zip(layers, found.values.values(), strict=True):
            torch.testing.assert_close(values, of(method, layer, **options).tensor)
    runs = []
    handle = MODEL.first.register_forward_hook(lambda *_: runs.append(1))
    of("gradient", "second"), (one := len(runs)), of("gradient", layers)
    handle.remove()
    assert len(runs) - one <= one + 1  # of which one finds the tensors of `pair` that are read


def test_layers_side_by_side_move_together():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.one(x).tanh() * self.two(x))

    model = Two().double()
    starts = {"one": model.one(ZERO).detach(), "two": model.two(ZERO).detach()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = attr.LayerIntegratedGradients(model, [model.one, model.two]).attribute(X, ZERO, target=1, n_steps=50)
    found = layerlens.saliency(
        model, X, target=1, method="integrated_gradients", where=["one", "two"], baseline=starts, tolerance=1e-6
    )
    for values, theirs in zip(found.values.values(), expected, strict=True):
        torch.testing.assert_close(values, theirs, rtol=1e-5, atol=1e-7)


def test_what_cannot_be_asked_says_so():
    with pytest.raises(TargetError, match="layer 'first' returned besides what the other layers hold"):
        of("integrated_gradients", ["first", "second"])
    with pytest.raises(SelectionError, match=r"one is needed.*where="):
        of("gradient", "*")
    with pytest.raises(SelectionError, match=r"Probe.model, layer, inputs=True"):
        layerlens.capture(MODEL, X, input_of("second"))
    with (
        pytest.raises(OptionError, match="two edits name the input of relu"),
        layerlens.Probe(
            MODEL, (), edits={input_of("relu"): lambda given: given}, arguments={"relu": lambda given: given}
        ),
    ):
        pass


def test_an_edit_of_what_a_layer_takes():
    with layerlens.Probe(MODEL, (), edits={input_of("relu"): layerlens.edits.zero()}), torch.no_grad():
        found = MODEL(X)
    torch.testing.assert_close(found, MODEL.second((torch.ones(1).double()).tanh().expand(2, 4) ** 2).detach())


def test_relevance_of_what_a_layer_takes():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    layers = [input_of("1"), "1", input_of("2"), input_of("4")]
    found = layerlens.relevance(net, X, target=1, rules="epsilon", layers=layers)
    assert set(found.layers) == {"input of 1", "1", "input of 2", "input of 4"}
    for layer in ("2", "4"):
        net[1].inplace = False  # captum's fails with a ReLU that writes into its input
        expected = attr.LayerLRP(net, net.get_submodule(layer)).attribute(X, target=1, attribute_to_layer_input=True)
        torch.testing.assert_close(found.layers[f"input of {layer}"][0], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.layers["1"][0], found.layers["input of 2"][0])


class Branches(nn.Module):
    """Two layers that read one tensor."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.first(x)
        return self.one(hidden) + self.two(hidden)


def test_only_what_passes_a_layer_is_of_its_input():
    model = Branches().double()
    both = ["first", input_of("one"), input_of("two")]
    found = layerlens.relevance(model, X, target=1, rules="epsilon", layers=both)
    one, two = (found.layers[f"input of {name}"][0] for name in ("one", "two"))
    torch.testing.assert_close(one + two, found.layers["first"][0], rtol=1e-4, atol=1e-6)
    slopes = layerlens.saliency(model, X, target=1, method="gradient", where=both).values
    torch.testing.assert_close(slopes["input of one"][0], model.one.weight[1].detach())
    torch.testing.assert_close(slopes["input of one"] + slopes["input of two"], slopes["first"])
