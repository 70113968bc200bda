"""Units of a layer, of its input and of several tensors, as targets and as ways of the score; captum is the oracle."""

import math

import pytest
import torch
from captum import attr
from torch import nn

import layerlens
from layerlens import input_of, neuron
from layerlens.errors import OptionError, RecordError, SelectionError, TargetError
from tests.cases import normal

from .test_input_of import MODEL, ZERO, X

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:captum"),
    pytest.mark.filterwarnings("ignore:.*zero everywhere:UserWarning"),  # units that are off
]


class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.head = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Linear(48, 2)

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).flatten(1))


NET, IMAGE = Picture().double().eval(), normal(2, 1, 6, 6).double()


@pytest.mark.parametrize(
    "unit", [(2, 1, 3), (0, slice(1, 3), 2), (slice(0, 2), 0, slice(None)), lambda y: y[:, 1, 2, 2]]
)
def test_units_are_chosen_as_captum_does(unit):
    target = neuron("relu", unit, over="sum")
    for method, oracle in (("gradient", attr.NeuronGradient), ("guided_backprop", attr.NeuronGuidedBackprop)):
        expected = oracle(NET, NET.relu).attribute(IMAGE, unit)
        torch.testing.assert_close(layerlens.saliency(NET, IMAGE, target=target, method=method).tensor, expected)
    expected = attr.NeuronIntegratedGradients(NET, NET.relu).attribute(IMAGE, unit, n_steps=50)
    found = layerlens.saliency(NET, IMAGE, target=target, method="integrated_gradients", tolerance=math.inf)
    torch.testing.assert_close(found.tensor, expected)


@pytest.mark.parametrize("layer", ["relu", "second"])
def test_a_unit_of_what_a_layer_takes(layer):
    module, own = getattr(MODEL, layer), {"neuron_selector": 2, "attribute_to_neuron_input": True}
    target = neuron(input_of(layer), 2)
    found = layerlens.saliency(MODEL, X, target=target, method="gradient")
    assert found.target == f"unit 2 of input of {layer}"
    torch.testing.assert_close(found.tensor, attr.NeuronGradient(MODEL, module).attribute(X, **own))
    expected = attr.NeuronIntegratedGradients(MODEL, module).attribute(X, baselines=ZERO, n_steps=200, **own)
    ours = layerlens.saliency(MODEL, X, target=target, method="integrated_gradients", steps=200, tolerance=math.inf)
    torch.testing.assert_close(ours.tensor, expected)
    expected = attr.NeuronFeatureAblation(MODEL, module).attribute(X, **own)
    torch.testing.assert_close(layerlens.saliency(MODEL, X, target=target, method="feature_ablation").tensor, expected)
    total = layerlens.relevance(MODEL, X, target=target, rules="epsilon")
    torch.testing.assert_close(total.score, found.score)


def test_one_argument_of_several():
    with pytest.raises(SelectionError, match="Name one: 'pair/0/0', 'pair/1/scale'"):
        layerlens.saliency(MODEL, X, target=neuron(input_of("pair"), 1), method="gradient")
    found = layerlens.saliency(MODEL, X, target=neuron(input_of("pair/1/scale"), 1), method="gradient")
    torch.testing.assert_close(found.score, MODEL.relu(MODEL.first(X)).cos()[:, 1].detach())


def test_deep_lift_of_a_unit():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    expected = attr.NeuronDeepLift(net, net[3]).attribute(X, 1, ZERO)
    found = layerlens.saliency(net, X, target=neuron("3", (1,)), method="deep_lift")
    torch.testing.assert_close(found.tensor, expected)


@pytest.mark.parametrize(
    ("layer", "unit"),
    [("conv", (2, 1, 3)), ("relu", (0, 2, 2)), (input_of("relu"), (0, 2, 2)), ("relu", lambda y: y[:, 1, 2, 2])],
)
def test_conductance_through_a_unit_is_that_of_captum(layer, unit):
    module = NET.conv if layer == "conv" else NET.relu
    own = {"attribute_to_neuron_input": not isinstance(layer, str), "target": 1, "baselines": -IMAGE / 2}
    own |= {"method": "gausslegendre", "n_steps": 50}
    found = layerlens.saliency(
        NET, IMAGE, target=1, method="neuron_conductance", where=layer, unit=unit, baseline=-IMAGE / 2
    )
    expected = attr.NeuronConductance(NET, module).attribute(IMAGE, unit, **own)
    torch.testing.assert_close(found.tensor, expected)
    apart = layerlens.saliency(
        NET, IMAGE, target=1, method="neuron_conductance", where=layer, unit=unit, baseline=-IMAGE / 2,
        multiply_by_inputs=False, batch_size=1,
    )  # fmt: skip
    expected = attr.NeuronConductance(NET, module, multiply_by_inputs=False).attribute(IMAGE, unit, **own)
    torch.testing.assert_close(apart.tensor, expected)


def test_conductances_through_units_add_up_to_that_of_the_layer():
    every = layerlens.saliency(
        MODEL, X, target=0, method="layer_conductance", where="pair", steps=400, tolerance=math.inf
    )
    for name, values in every.values.items():
        for unit in (1, slice(0, 3)):
            one = layerlens.saliency(MODEL, X, target=0, method="neuron_conductance", where=name, unit=unit, steps=400)
            of_layer = values[:, unit].reshape(2, -1).sum(dim=1)
            torch.testing.assert_close(one.tensor.sum(dim=1), of_layer, rtol=1e-2, atol=1e-2)
            assert one.settings["where"] == name


def test_samples_that_influence_each_other_are_run_one_by_one():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    net = nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2)).double().eval()
    options = {"target": 0, "where": "2", "quadrature": "riemann_trapezoid", "steps": 101, "baseline": -X}
    with pytest.warns(UserWarning, match="influence each other"):
        found = layerlens.saliency(net, X * 2, method="neuron_conductance", unit=1, **options)
    with pytest.warns(UserWarning, match="influence each other"):
        of_layer = layerlens.saliency(
            net, X * 2, method="layer_conductance", target=0, where="2", baseline=-X, steps=100, tolerance=math.inf
        )
    torch.testing.assert_close(found.tensor.sum(dim=1), of_layer.tensor[:, 1], rtol=1e-2, atol=1e-3)


def test_units_that_are_not_there():
    ask = {"method": "neuron_conductance", "target": 0}
    for options, error, match in (
        ({"where": "conv"}, OptionError, "give unit=3"),
        ({"unit": 0}, OptionError, "give where="),
        ({"where": "conv", "unit": 9}, TargetError, "has 3 units; there is no unit 9"),
        ({"where": "conv", "unit": (1, 9, 0)}, TargetError, r"has places \(4, 4\); there is no place \(9, 0\)"),
        ({"where": "conv", "unit": slice(5, 9)}, TargetError, "chooses nothing"),
        ({"where": ["conv", "relu"], "unit": 0}, SelectionError, "give one of"),
    ):
        with pytest.raises(error, match=match):
            layerlens.saliency(NET, IMAGE, **ask, **options)
    with pytest.raises(TargetError, match="one too many"):
        neuron("conv", (1, 2, 2), place=(2, 2))
    with pytest.raises(RecordError, match=r"ran 1 time\(s\); there is no call 2"):
        layerlens.saliency(NET, IMAGE, target=neuron(input_of("conv"), 0, call=2), method="gradient")


def test_a_function_of_units_returns_a_value_for_each_sample():
    for wrong in (lambda units: units.sum(), lambda units: units[0]):
        with pytest.raises(TargetError, match=r"must return one value for each of 2 sample\(s\), \(batch,\), for"):
            layerlens.saliency(Picture(), torch.ones(2, 1, 6, 6), target=neuron("conv", wrong), method="gradient")


def test_a_later_call_whose_output_is_overwritten():
    class Twice(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.relu = nn.Linear(4, 4), nn.ReLU(inplace=inplace)

        def forward(self, x):
            return self.relu(self.one(self.relu(self.one(x))))

    x = normal(3, 4)
    for call in (0, 1, -1):
        target = neuron("one", slice(0, 2), call=call)
        found, expected = (
            layerlens.saliency(Twice(inplace), x, target=target, method="gradient") for inplace in (True, False)
        )
        torch.testing.assert_close(found.tensor, expected.tensor)


def test_a_function_that_adds_units_up_has_the_sum_of_their_conductances():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.rand(2, 3).double()

    def through(unit):
        return layerlens.Lens(net).saliency.neuron_conductance(x, target=1, where="1", unit=unit).tensor

    torch.testing.assert_close(through(lambda y: y[:, 1:].sum(dim=1)), through(slice(1, 4)))
    torch.testing.assert_close(through(lambda y: y.mean(dim=1)), through(slice(0, 4)) / 4)
    with pytest.raises(TargetError, match="must return one value for each"):
        through(lambda y: y.sum())
