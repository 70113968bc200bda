"""Backward passes of torch that a rule makes superfluous do not run, and nothing else changes."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from layerlens import relevance
from layerlens.analyzers.relevance import linear_hooks, spared
from layerlens.rules import RULEBOOKS

SPARED = {"gelu_backward", "silu_backward", "native_group_norm_backward", "native_batch_norm_backward"}


class Ran(TorchDispatchMode):
    """The operations that run on tensors; a stand-in's answer is none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        if not any(isinstance(part, spared.Asked) for part in args):
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def _net():
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 8, 1), nn.GroupNorm(2, 8), nn.GELU()),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 4, 1), nn.GELU(approximate="tanh"), nn.Flatten()),
        *(nn.Linear(4 * 36, 20), nn.LayerNorm(20), nn.Linear(20, 3)),
    ).eval()
    net[1].running_mean.normal_()
    nn.init.normal_(net[1].bias)
    nn.init.normal_(net[12].bias)
    return net.double()


@pytest.mark.parametrize("rules", ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1_flat"])
def test_what_is_spared_changes_no_number(rules, monkeypatch):
    net, x = _net(), torch.randn(2, 3, 10, 10, dtype=torch.float64)
    expected = relevance(net, x, target=1, rules=rules, layers=None)
    for module in (spared, linear_hooks):
        monkeypatch.setattr(module, "WORTH_SPARING", 0)
    with Ran() as ran:
        found = relevance(net, x, target=1, rules=rules, layers=None)
    assert not SPARED.intersection(ran.names) - ({"native_batch_norm_backward"} if rules == "epsilon" else set())
    torch.testing.assert_close(found.values, expected.values)
    assert list(found.layers) == list(expected.layers)
    for name, values in found.layers.items():
        torch.testing.assert_close(values, expected.layers[name])
    assert float(found.ledger.relative.max()) < 1e-12


def test_relevance_of_parameters_needs_the_backward_pass_of_torch(monkeypatch):
    net, x = _net(), torch.randn(2, 3, 10, 10, dtype=torch.float64)
    names = ["3.weight", "12.weight"]
    expected = relevance(net, x, target=1, rules=RULEBOOKS["epsilon_plus"], parameters=names).parameters
    for module in (spared, linear_hooks):
        monkeypatch.setattr(module, "WORTH_SPARING", 0)
    found = relevance(net, x, target=1, rules=RULEBOOKS["epsilon_plus"], parameters=names).parameters
    for name in names:
        torch.testing.assert_close(found[name], expected[name])
        assert bool(found[name].any())
