"""Maps of several targets: those of one target at a time, from one forward pass."""

import pytest
import torch
from torch import nn

from layerlens import Lens, contrast, errors, neuron, saliency, saliency_by_target
from tests.cases import normal
from tests.snapshot import Snapshot

from .test_input_of import MODEL, X


@pytest.mark.parametrize("method", ["gradient", "input_x_gradient", "integrated_gradients"])
@pytest.mark.parametrize("where", [None, "second", ["first", "second"]])
def test_each_map_is_that_of_its_target_alone(method, where):
    if method == "integrated_gradients" and isinstance(where, list):
        pytest.skip("layers that follow each other are taken one by one")
    targets = [0, [1, 0], contrast(0, 1), lambda output: output.square().sum(dim=1), None]
    before = Snapshot(MODEL, X)
    every = saliency_by_target(MODEL, X, targets=targets, method=method, where=where)
    before.check()
    for target, found in zip(targets, every, strict=True):
        one = saliency(MODEL, X, target=target, method=method, where=where)
        assert found.target == one.target and found.targets == one.targets and found.settings == one.settings
        torch.testing.assert_close(found.score, one.score)
        pairs = (
            zip(found.values.values(), one.values.values(), strict=True)
            if isinstance(where, list)
            else [(found.tensor, one.tensor)]
        )
        for own, theirs in pairs:
            torch.testing.assert_close(own, theirs)


@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "deconvnet"])
def test_one_forward_pass_and_a_backward_pass_each(method):
    runs, sweeps = [], []
    act = nn.Tanh() if method == "gradient" else nn.ReLU()
    net = nn.Sequential(nn.Linear(3, 16), act, nn.Linear(16, 3)).double()
    x = normal(1, 3).double()
    handles = [
        net.register_forward_hook(lambda *_: runs.append(1)),
        net[1].register_full_backward_hook(lambda *_: sweeps.append(1)),
    ]
    saliency(net, x, target=0, method=method), (alone := len(runs)), sweeps.clear()
    found = Lens(net, class_names=["a", "b", "c"]).saliency_by_target(x, targets=["a", "b", "c"], method=method)
    for handle in handles:
        handle.remove()
    assert len(runs) - alone <= alone and len(sweeps) == 3 and [one.target for one in found] == ["a", "b", "c"]
    for number, one in enumerate(found):
        torch.testing.assert_close(one.tensor, saliency(net, x, target=number, method=method).tensor)
    units = saliency_by_target(net, x, targets=[neuron("0", 1), neuron("0", 2)], method="gradient")
    torch.testing.assert_close(torch.cat([one.tensor for one in units]), net[0].weight[1:3].detach())


def test_targets_that_cannot_be_taken_together():
    with pytest.raises(errors.OptionError, match="list of one or more targets"):
        saliency_by_target(MODEL, X, targets=[])
    with pytest.raises(errors.TargetError, match="read different layers"):
        saliency_by_target(MODEL, X, targets=[0, neuron("second", 1)])
    with pytest.raises(errors.UnknownOption, match="no option 'magnitud'"):
        saliency_by_target(MODEL, X, targets=[0, 1], method="gradient", options={"magnitud": True})
