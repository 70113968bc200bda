"""Tangents of linear operations against torch's own formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerlens.analyzers.sensitivity import jacobian
from layerlens.analyzers.sensitivity.local.linear_tangents import LinearTangents
from tests.cases import normal

SETS = {
    "linear": (nn.Linear(6, 4), (2, 5, 6)),
    "without a bias": (nn.Linear(6, 4, bias=False), (2, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, groups=2), (2, 4, 9)),
    "conv2d, padded by name": (nn.Conv2d(3, 4, 3, padding="same", dilation=2), (2, 3, 7, 8)),
    "conv2d, circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 7, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (2, 3, 5, 5)),
    "batch norm": (nn.BatchNorm2d(3), (2, 3, 5, 5)),
    "batch norm without weights": (nn.BatchNorm1d(3, affine=False), (4, 3)),
    "batch norm of the batch": (nn.BatchNorm1d(3, track_running_stats=False), (4, 3)),
    "overwritten": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), (2, 3, 6, 6)),
}


@pytest.mark.parametrize("name", SETS)
def test_value_and_tangent_are_those_of_torch(name):
    layer, shape = SETS[name]
    torch.manual_seed(0)
    layer = layer.double().eval()
    for module in layer.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2.0)
    x, steps = normal(*shape).double(), torch.randn(3, *shape, dtype=torch.float64)

    def both(step):
        return torch.func.jvp(layer, (x,), (step,))

    with torch.no_grad():
        expected, apart = torch.func.vmap(both)(steps), both(steps[0])
        with LinearTangents():
            found, one = torch.func.vmap(both)(steps), both(steps[0])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one, apart, rtol=1e-12, atol=1e-12)


def test_a_weight_with_a_tangent_is_left_to_torch():
    x, weight, steps = normal(2, 3), normal(4, 3), (torch.ones(2, 3), torch.ones(4, 3))
    expected = torch.func.jvp(F.linear, (x, weight), steps)
    with LinearTangents():
        found = torch.func.jvp(F.linear, (x, weight), steps)
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:jacobian. one draw")
def test_the_run_on_the_batch_twice_is_made_once_until_the_model_changes():
    torch.manual_seed(0)
    net, batches = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), []
    net.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))

    def runs(x):
        batches.clear()
        values = jacobian(net, x, draws=1).values
        return batches.copy(), values

    x = normal(2, 3)
    (first, values), (again, same) = runs(x), runs(x)
    assert 4 in first and again == [2, 2] and torch.equal(values, same)
    assert 6 in runs(normal(3, 3))[0]
    net[1] = nn.Tanh()
    assert 6 in runs(normal(3, 3))[0]
