"""Any method at any layer, and units of layers as targets: against chains of Jacobians written by hand."""

import pytest
import torch
from matplotlib.text import Text
from torch import nn

import layerlens
from layerlens.errors import RecordError, SelectionError, TargetError
from tests.cases import CASES, normal


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def test_the_gradient_at_a_layer_is_that_of_the_rest_of_the_network():
    model, x = net(), normal(2, 4).double()
    found = layerlens.saliency(model, x, target=1, method="gradient", where="1")
    held = model[1](model[0](x)).detach().requires_grad_()
    (expected,) = torch.autograd.grad(model[4](model[3](model[2](held)))[:, 1].sum(), held)
    torch.testing.assert_close(found.tensor, expected)
    assert found.settings["where"] == "1" and found.tensor.shape == (2, 6)


def test_integrated_gradients_at_a_layer_are_complete_there():
    model, x = net(), normal(2, 4).double()
    found = layerlens.saliency(model, x, target=1, method="integrated_gradients", where="1", tolerance=1e-6)
    with torch.no_grad():
        change = model(x)[:, 1] - model[2:](torch.zeros(2, 6).double())[:, 1]
    torch.testing.assert_close(found.tensor.sum(dim=1), change, rtol=1e-5, atol=1e-6)


def test_a_layer_with_time_first_is_given_back_in_its_own_layout():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.rnn(x.transpose(0, 1))[0].pow(2).sum(0))

    model, x = Net().double(), normal(2, 5, 3).double()
    found = layerlens.saliency(model, x, target=0, method="gradient", where="rnn")
    held = model.rnn(x.transpose(0, 1))[0].detach()
    torch.testing.assert_close(found.tensor, (2 * held * model.out.weight[0].detach()).transpose(0, 1))
    assert found.axes == ("batch", "time", "feature")


def test_windows_of_an_image_belong_to_their_sample():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2, bias=False)

        def forward(self, x):  # (batch, 6): three windows of two
            return self.inner(x.reshape(-1, 2)).reshape(len(x), 6).pow(2)

    model, x = Windows().double(), normal(2, 6).double()
    found = layerlens.saliency(model, x, target=3, method="gradient", where="inner")
    held = model.inner(x.reshape(-1, 2)).detach().reshape(2, 3, 2)
    expected = torch.zeros_like(held)
    expected[:, 1, 1] = 2 * held[:, 1, 1]
    torch.testing.assert_close(found.tensor, expected)


def test_a_layer_that_is_called_as_an_input_is_named_has_no_picture_of_it():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2))
    found = layerlens.saliency(model, normal(2, 1, 6, 6), target=0, method="gradient", where="0")
    assert found.inputs is None and found.tensor.shape == (2, 2, 4, 4)
    assert found.how == "gradient at 0" and "gradient at 0" in repr(found)
    assert any("Gradient at 0" in text.get_text() for text in found.plot().fig.findobj(Text))


def test_a_layer_on_which_the_score_does_not_depend_is_told():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    with pytest.raises(TargetError, match="does not depend on what layer 'unused' returned"):
        layerlens.saliency(Net(), normal(2, 3), target=0, method="gradient", where="unused")
    x, net = normal(2, 3), Net()
    for method in ("gradient", "integrated_gradients", "deep_lift", "layer_conductance", "feature_ablation"):
        with pytest.warns(UserWarning, match="does not depend on layer unused"):
            found = layerlens.saliency(net, x, target=0, method=method, where="unused", unused="zero")
        assert found.tensor.shape == (2, 2) and not found.tensor.any() and found.settings["where"] == "unused"
        with pytest.warns(UserWarning, match="does not depend on layer unused"):
            both = layerlens.saliency(net, x, target=0, method=method, where=["used", "unused"], unused="zero")
        alone = layerlens.saliency(net, x, target=0, method=method, where="used", unused="zero")
        assert torch.equal(both.values["used"], alone.tensor) and not both.values["unused"].any()
        assert both.settings["unused"] == "unused" and "unused" not in alone.settings
    for options in ({}, {"where": "input"}):
        with pytest.raises(layerlens.errors.OptionError, match="name one, where="):
            layerlens.saliency(net, x, target=0, method="gradient", unused="zero", **options)


def test_a_call_is_named():
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.out(torch.tanh(self.inner(torch.tanh(self.inner(x)))))

    model, x = Twice().double(), normal(2, 3).double()
    with pytest.raises(SelectionError, match="inner#0"):
        layerlens.saliency(model, x, target=0, method="gradient", where="inner")
    first = layerlens.saliency(model, x, target=0, method="gradient", where="inner#0").tensor
    last = layerlens.saliency(model, x, target=0, method="gradient", where="inner#1").tensor
    held = model.inner(x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(model.out(torch.tanh(model.inner(torch.tanh(held))))[:, 0].sum(), held)
    torch.testing.assert_close(first, expected)
    assert not torch.allclose(first, last)
    with pytest.raises(RecordError, match="no call 5"):
        layerlens.saliency(model, x, target=0, method="gradient", where="inner#5")


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", "smooth_grad", "integrated_gradients", "deep_lift"])
def test_every_method_of_gradients_runs_at_a_layer(method):
    for name, layer in (("cnn", None), ("hf_bert", None)):
        case = CASES[name]
        model, x = case.build(), case.example()
        record = layerlens.capture(model, x, reduce=lambda out: out.shape if isinstance(out, torch.Tensor) else None)
        layer = next(path for path in list(record)[2:] if record[path] is not None)
        found = layerlens.saliency(model, x, target=case.target, method=method, where=layer)
        assert found.tensor.shape == record[layer] and found.inputs is None
        assert found.tensor.isfinite().all() and found.tensor.any()


@pytest.mark.parametrize("rules", ["epsilon", "auto"])
def test_a_unit_is_the_target_of_relevance(rules):
    model, x = net(), normal(2, 4).double()
    unit = layerlens.neuron("2", 3)
    found = layerlens.relevance(model, x, target=unit, rules=rules)
    torch.testing.assert_close(found.score, model[:3](x)[:, 3].detach())
    assert found.ledger.residual.abs().max() < 1e-9
    inner = layerlens.relevance(model[:3], x, target=3, rules=rules)
    torch.testing.assert_close(found.tensor, inner.tensor)


def test_a_unit_at_a_place_of_an_image_and_of_a_text():
    model = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2)).double()
    x = normal(2, 1, 6, 6).double()
    found = layerlens.saliency(model, x, target=layerlens.neuron("0", 2, place=(1, 3)), method="gradient").tensor
    expected = torch.zeros_like(x)
    expected[:, :, 1:4, 3:6] = model[0].weight[2].detach()
    torch.testing.assert_close(found, expected)
    mean = layerlens.saliency(model, x, target=layerlens.neuron("0", -1), method="gradient").score
    torch.testing.assert_close(mean, model[0](x)[:, 2].mean(dim=(1, 2)).detach())
    both = layerlens.neuron("0", 0) - layerlens.neuron("0", 1)
    gap = layerlens.saliency(model, x, target=both, method="gradient").score
    torch.testing.assert_close(gap, (model[0](x)[:, 0] - model[0](x)[:, 1]).mean(dim=(1, 2)).detach())


def test_units_and_places_that_are_not_there():
    model, x = net(), normal(2, 4).double()
    for target, match in (
        (layerlens.neuron("2", 9), "has 5 units"),
        (layerlens.neuron("2", 0, place=3), "no place 3"),
    ):
        with pytest.raises(TargetError, match=match):
            layerlens.saliency(model, x, target=target, method="gradient")
    with pytest.raises(RecordError, match="no call 1"):
        layerlens.saliency(model, x, target=layerlens.neuron("2", 0, call=1), method="gradient")
    with pytest.raises(TargetError, match="different layers"):
        layerlens.neuron("2", 0) - layerlens.neuron("0", 0)
    with pytest.raises(TargetError, match="reads layer '2'"):
        layerlens.neuron("2", 0)(model(x))


def test_the_methods_are_listed_with_their_cost():
    table = layerlens.saliency.methods()
    assert {"gradient", "integrated_gradients", "deep_lift"} <= set(table)
    assert "1 gradient" in table["gradient"] and "Simonyan" in repr(table)
    assert all(len(row) == 4 and row[1] and row[3] for row in table.rows.values())


def test_options_by_layer_may_name_a_layer_that_the_score_does_not_use():
    torch.manual_seed(0)
    net, x, ones = nn.ModuleDict({"used": nn.Linear(3, 2), "other": nn.Linear(3, 2)}), torch.rand(2, 3), torch.ones(2)
    lens = layerlens.Lens(net, forward=lambda net, x: 0 * len(net["other"](x)) + net["used"](x))
    with pytest.warns(UserWarning, match="does not depend on layer other"):
        both = lens.saliency(
            x, target=0, method="integrated_gradients", where=["used", "other"], unused="zero",
            baseline={"used": ones, "other": ones},
        )  # fmt: skip
    alone = lens.saliency(x, target=0, method="integrated_gradients", where="used", baseline=ones)
    assert torch.equal(both.values["used"], alone.tensor) and not both.values["other"].any()
