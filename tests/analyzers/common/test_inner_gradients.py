"""Models that call torch.autograd.grad in their forward, against sums over the same model written without it."""

import pytest
import torch
from torch import nn

from layerlens import Lens, capture, check_gradient, relevance, saliency
from tests.cases import normal


class Energy(nn.Module):
    """E(x) = sum of w tanh(A x)."""

    def __init__(self):
        super().__init__()
        self.a, self.w = nn.Linear(4, 8), nn.Linear(8, 1, bias=False)

    def forward(self, x):
        return self.w(torch.tanh(self.a(x))).sum(-1)


class Force(nn.Module):
    """-dE/dx by autograd, in the ways that such models are written."""

    def __init__(self, energy, *, asks, graph, enables=False):
        super().__init__()
        self.energy, self.asks, self.graph, self.enables = energy, asks, graph, enables

    def forward(self, x):
        if self.enables:
            with torch.enable_grad():
                return self.force(x)
        return self.force(x)

    def force(self, x):
        if self.asks and x.is_leaf:
            x.requires_grad_(True)
        create = self.training if self.graph == "training" else self.graph
        (slope,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=create)
        return -slope


class ByHand(nn.Module):
    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def forward(self, x):
        inner = torch.tanh(self.energy.a(x))
        return -((1 - inner**2) * self.energy.w.weight) @ self.energy.a.weight


class Physics(nn.Module):
    """A force in the middle of a net, and a way around it."""

    def __init__(self, force):
        super().__init__()
        self.first, self.force, self.last = nn.Linear(4, 4), force, nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.force(self.first(x))) + x)


WAYS = {
    "asks": {"asks": True, "graph": True},
    "takes it as given": {"asks": False, "graph": True},
    "no graph in eval": {"asks": True, "graph": "training"},
    "no graph": {"asks": False, "graph": False},
    "enables": {"asks": True, "graph": True, "enables": True},
}
METHODS = {
    "gradient": {},
    "input_x_gradient": {},
    "smooth_grad": {"samples": 3, "seed": 1},
    "integrated_gradients": {"steps": 20},
    "gradient_shap": {"seed": 1},
    "guided_ig": {"steps": 5},
    "occlusion": {"window": 1},
}


def pair(way, inside):
    torch.manual_seed(0)
    energy = Energy()
    force, by_hand = Force(energy, **WAYS[way]), ByHand(energy)
    if not inside:
        return force.double(), by_hand.double()
    net = Physics(force)
    other = Physics(by_hand)
    other.load_state_dict(net.state_dict())
    return net.double(), other.double()


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_it_is_attributed_as_the_same_model_without_autograd(way, method, inside):
    model, by_hand = pair(way, inside)
    x = normal(2, 4).double()
    found, expected = (saliency(one, x, method=method, target=1, **METHODS[method]) for one in (model, by_hand))
    torch.testing.assert_close(found.values, expected.values, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.score, expected.score)
    assert not x.requires_grad and all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_its_gradient_passes_the_check(way):
    for inside in (False, True):
        assert check_gradient(pair(way, inside)[0], normal(2, 4).double(), target=1, layers=None).passed is True


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients"])
def test_a_layer_inside_of_it(method):
    model, by_hand = pair("no graph", True)
    x = normal(2, 4).double()
    found, expected = (saliency(one, x, method=method, target=1, where="first") for one in (model, by_hand))
    torch.testing.assert_close(found.values, expected.values, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:no relevance rule", "ignore:relevance. the ledger does not close")
def test_relevance_passes_the_inner_gradient():
    model, _ = pair("no graph", True)
    found = relevance(model, normal(2, 4).double(), target=1)
    assert bool(found.values.any())


def test_an_error_of_the_model_stays_its_own():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("this tensor does not require grad, said the model")

    with pytest.raises(RuntimeError, match="said the model"):
        saliency(Broken(), normal(1, 4), method="occlusion", target=0)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("outside", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", WAYS)
def test_layers_of_such_models_are_captured(way, outside, frozen):
    torch.manual_seed(0)
    energy = Energy().double()
    model, x = Force(energy, **WAYS[way]).requires_grad_(not frozen), normal(3, 4).double()
    hidden = torch.tanh(energy.a(x)).detach()
    with outside():
        record, output = capture(model, x), Lens(model).run(x)
        axes = record.axes("energy.a")
    torch.testing.assert_close(record["energy.w"], energy.w(hidden).detach())
    torch.testing.assert_close(output, ByHand(energy)(x).detach())
    assert len(record.calls("energy.a")) == 1 and not record["energy.a"].requires_grad and not output.requires_grad
    assert axes == ("batch", "unit")
    assert not x.requires_grad and all(
        one.requires_grad is not frozen and one.grad is None for one in model.parameters()
    )


def test_a_model_without_a_graph_of_its_own_still_fails_with_the_error_of_torch():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.autograd.grad(torch.ones(()), x)[0]

    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not require grad"):
            capture(Broken(), normal(2, 3))


def test_data_that_can_be_read_once_is_not_read_twice():
    model = Force(Energy(), asks=True, graph=True)
    with pytest.raises(RuntimeError, match="does not require grad") as caught:
        Lens(model).geometry(iter(normal(20, 3, 4)))
    assert any("call it again" in note for note in getattr(caught.value, "__notes__", ["call it again"]))
    assert "energy.a" in Lens(model).geometry(iter(normal(20, 3, 4))).layers
