"""Inputs that are held fixed by name: never changed, never attributed to."""

import pytest
import torch
from torch import nn

from layerlens import Lens, input_of, saliency
from layerlens.analyzers.saliency import integrated_gradients
from layerlens.errors import InputError, OptionError

X, GAIN = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])


class Gain(nn.Module):
    def forward(self, x, gain):
        return (x * gain).sum(dim=1)


class Nested(nn.Module):
    def forward(self, x, more):
        return (x * more["gain"]).sum(dim=1) + more["shift"].sum(dim=1)


METHODS = (
    "gradient",
    "integrated_gradients",
    "kernel_shap",
    "shapley_sampling",
    "occlusion",
    "relevance",
    "smooth_grad",
)


@pytest.mark.parametrize("method", METHODS)
def test_the_rest_is_explained_as_if_the_held_input_were_a_constant(method):
    alone = Lens(Gain(), forward=lambda model, x: model(x, GAIN.expand_as(x))).saliency(X, method=method)
    for hold in ("gain", 1, "1", ["gain"]):
        found = Lens(Gain()).saliency((X, GAIN), method=method, hold=hold)
        assert torch.allclose(found.tensor, alone.tensor, atol=1e-6) and found.settings["hold"] == "1"


def test_the_values_are_those_of_the_case():
    assert torch.allclose(
        Lens(Gain()).saliency((X, GAIN), method="integrated_gradients", hold="gain").tensor, torch.tensor([[3.0, 10.0]])
    )
    found = integrated_gradients(Gain(), (X, GAIN), hold="x").tensor
    assert torch.allclose(found, torch.tensor([[3.0, 10.0]]))
    labels = {"0": torch.tensor([[0, 1]]), "1": torch.tensor([[-1, -1]])}
    found = Lens(Gain()).saliency((X, GAIN), method="kernel_shap", features=labels)
    assert torch.allclose(found.values["0"], torch.tensor([[3.0, 10.0]])) and not found.values["1"].any()


def test_relevance_books_the_held_input_as_a_constant():
    found = Lens(Gain()).relevance((X, GAIN), hold="gain")
    assert torch.equal(found.tensor, torch.tensor([[3.0, 10.0]])) and float(found.ledger.relative) < 1e-6


def test_parts_of_nested_inputs_and_keywords():
    given = {"x": X, "more": {"gain": GAIN, "shift": torch.ones(1, 2)}}
    found = Lens(Nested()).saliency(given, method="gradient", hold="more.gain")
    assert set(found.values) == {"x", "more.shift"}
    assert torch.equal(Lens(Nested()).saliency(given, method="gradient", hold="more").tensor, GAIN)


def test_tokens_can_be_held():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(9, 2)

        def forward(self, pixel_values, input_ids):
            return (self.words(input_ids).sum(dim=1) * pixel_values).sum(dim=1)

    torch.manual_seed(0)
    model, ids = Both(), torch.tensor([[1, 4, 2]])
    found = Lens(model).saliency((X, ids), method="integrated_gradients", hold="input_ids")
    assert torch.allclose(found.tensor, X * model.words(ids).sum(dim=1))
    held = Lens(model).saliency((X, ids), method="gradient", hold="pixel_values")
    assert held.axes == ("batch", "token") and held.tensor.shape == (1, 3)


def test_measures_vary_the_rest_alone():
    lens = Lens(Gain())
    assert lens.sobol((X, GAIN), ranges=(0, 1), hold="gain", samples=64, replicates=1).items == (
        "feature 0",
        "feature 1",
    )
    shares = lens.sobol((X, GAIN), ranges=(0, 1), hold="gain", samples=1024, replicates=1).column("total order")
    assert torch.allclose(shares, torch.tensor([9, 25]).double() / 34, atol=0.02)
    assert torch.allclose(
        lens.morris((X, GAIN), ranges=(0, 1), hold="gain").column("mu*"), torch.tensor([3.0, 5.0]).double()
    )
    scale = lens.lipschitz((X, GAIN), hold="gain").values[-1]
    assert abs(float(scale) - 34**0.5) < 1e-4
    curve = lens.attack_curve((X, GAIN), hold="gain", target=lambda output: output, eps=[0.0, 0.1], null=False)
    assert torch.allclose(curve.values, torch.tensor([[13.0, 12.2]]).double())
    board = lens.evaluate((X.repeat(3, 1), GAIN.repeat(3, 1)), ["gradient", "kernel_shap"], hold="gain", controls=False)
    assert set(board.methods) == {"gradient", "kernel_shap"}
    assert (
        lens.jacobian((X, GAIN), hold="gain").values.numel()
        and lens.noise_response((X, GAIN), hold="gain").values.numel()
    )


def test_what_cannot_be_held_is_said():
    lens = Lens(Gain())
    with pytest.raises(OptionError, match="unknown input in hold= 'gian'"):
        lens.saliency((X, GAIN), hold="gian")
    with pytest.raises(InputError, match="every input is held fixed"):
        lens.saliency((X, GAIN), hold=["x", "gain"])
    with pytest.raises(OptionError, match="hold= is for inputs, but where='0' attributes to a layer"):
        Lens(nn.Sequential(nn.Linear(2, 2))).saliency(X, where="0", hold=0, method="gradient")


@pytest.mark.parametrize("method", ["layer_conductance", "internal_influence", "neuron_conductance"])
def test_an_input_is_held_on_the_way_to_a_layer(method):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, gain):
            return self.two((self.one(x) * gain).tanh())

    model, x, gain = Net().double(), torch.rand(2, 3).double(), torch.rand(2, 4).double() + 1
    options = {"target": 1, "method": method, "where": input_of("two")}
    options |= {"unit": 1} if method == "neuron_conductance" else {}
    found = saliency(model, (x, gain), hold="gain", **options)

    for row in range(2):
        own = gain[row : row + 1]
        one = saliency(
            model, x[row : row + 1], forward=lambda net, x, own=own: net(x, own.expand(len(x), -1)), **options
        )
        torch.testing.assert_close(found.tensor[row], one.tensor[0])
