"""Saliency at, and of, layers that return several tensors."""

import pytest
import torch
from torch import nn

from layerlens import Lens, errors, relevance, saliency
from layerlens.analyzers.activation import activation_maps, layer_maps
from layerlens.targets.units import direction, neuron
from tests.several_tensors import PACKED, flat, pair, two_heads
from tests.snapshot import Snapshot

LOOSE = {"layer_conductance": {"tolerance": float("inf")}, "internal_influence": {}}
RNNS = {"lstm": {}, "gru": {"kind": nn.GRU}, "two layers": {"layers": 2}, "time first": {"batch_first": False}}


def series():
    return torch.randn(4, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("rnn", RNNS)
@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", "integrated_gradients", "occlusion"])
def test_attributions_are_at_the_tensor_that_is_read(rnn, method):
    by_state, by_output = pair(**RNNS[rnn])
    x = series()
    before = Snapshot(by_state, x)
    state, output = (saliency(model, x, method=method, target=0, where="rnn") for model in (by_state, by_output))
    before.check()
    assert state.settings["where"] == "rnn/h_n" and output.settings["where"] == "rnn/output"
    assert state.axes == ("batch", "layer", "feature") and output.axes == ("batch", "time", "feature")
    torch.testing.assert_close(state.tensor[:, -1], output.tensor[:, -1])
    named = saliency(by_state, x, method=method, target=0, where="rnn/h_n")
    torch.testing.assert_close(named.tensor, state.tensor, rtol=0, atol=0)
    if method == "gradient":
        torch.testing.assert_close(state.tensor[:, -1], by_state.fc.weight[0].detach().expand(4, 5))
        with pytest.raises(errors.TargetError, match="does not depend on what layer 'rnn/output' returned"):
            saliency(by_state, x, method=method, target=0, where="rnn/output")


@pytest.mark.parametrize("method", ["layer_conductance", "internal_influence"])
def test_paths_of_several_tensors(method):
    by_state, by_output = pair()
    x = series()
    state, output = (saliency(model, x, method=method, target=0, where="rnn") for model in (by_state, by_output))
    torch.testing.assert_close(state.tensor[:, -1], output.tensor[:, -1])
    both, x = two_heads("dict"), torch.ones(2, 3, dtype=torch.float64)
    found = saliency(both, x, method=method, target=0, where="block", **LOOSE[method])
    for name in ("block/first", "block/second"):
        one = saliency(both, x, method=method, target=0, where=name, **LOOSE[method])
        torch.testing.assert_close(found.values[name], one.tensor)


@pytest.mark.parametrize("packed", PACKED)
def test_several_tensors_are_all_attributed(packed):
    model, x = two_heads(packed), torch.randn(3, 3, dtype=torch.float64)
    names = [f"block/{name}" for name in PACKED[packed][1]]
    found = saliency(model, x, method="input_x_gradient", target=0, where="block")
    assert list(found.values) == names and found.settings["where"] == ", ".join(names)
    with torch.no_grad():
        tensors = [tensor for tensor in flat(model.block(x)) if tensor is not None]
    for name, head, tensor in zip(names, (model.one, model.two), tensors, strict=True):
        torch.testing.assert_close(found.values[name], tensor * head.weight[0].detach())
        alone = saliency(model, x, method="input_x_gradient", target=0, where=name)
        torch.testing.assert_close(alone.tensor, found.values[name])


def test_units_of_a_named_tensor_are_targets():
    by_state, by_output = pair(layers=2)
    x = series()
    leaf = x.clone().requires_grad_()
    _, (h, c) = by_state.rnn(leaf)
    for layer, value in (("rnn/h_n", h[:, :, 3].mean(dim=0)), ("rnn/c_n", c[:, :, 3].mean(dim=0))):
        (expected,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
        found = saliency(by_state, x, method="gradient", target=neuron(layer, 3))
        torch.testing.assert_close(found.tensor, expected)
    (expected,) = torch.autograd.grad(h[1, :, 3].sum(), leaf, retain_graph=True)
    torch.testing.assert_close(
        saliency(by_state, x, method="gradient", target=neuron("rnn", 3, place=1)).tensor, expected
    )
    torch.testing.assert_close(
        saliency(by_output, x, method="gradient", target=neuron("rnn", 3, place=-1)).tensor, expected
    )
    one, two = (relevance(m, x, target=neuron("rnn", 3, place=-1)).tensor for m in (by_state, by_output))
    torch.testing.assert_close(one, two)
    assert saliency(
        by_state, x, method="gradient", target=direction("rnn/c_n", torch.eye(5, dtype=torch.float64)[1])
    ).tensor.any()
    both = two_heads("tuple")
    with pytest.raises(errors.SelectionError, match="Name one: 'block/0', 'block/1'"):
        saliency(both, torch.ones(2, 3, dtype=torch.float64), method="gradient", target=neuron("block", 0))


def test_maps_of_each_tensor():
    by_state, by_output = pair()
    x = series()
    state, output = (activation_maps(model, x, "rnn") for model in (by_state, by_output))
    assert state.axes == ("batch", "unit", "layer") and output.axes == ("batch", "unit", "time")
    torch.testing.assert_close(state.values[..., -1], output.values[..., -1])
    assert activation_maps(by_state, x, "rnn/c_n").layer == "rnn/c_n"
    model = two_heads("model output")
    found = layer_maps(model, torch.ones(2, 3, dtype=torch.float64), ["block", "one"])
    assert [maps.layer for maps in found] == ["block/first", "block/second", "one"]
    with pytest.raises(errors.SelectionError, match="Name one: 'block/first', 'block/second'"):
        Lens(model).activation_maps(torch.ones(2, 3, dtype=torch.float64), "block")
