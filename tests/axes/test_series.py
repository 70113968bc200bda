"""A series with few steps and many features: time is what no layer reads as channels or features."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens.axes.series import time_axis
from tests.cases import normal


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(24, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(dim=1))


class Turned(nn.Module):
    """A convolution over time of a series with its features last."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv1d(24, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x.mT)).mean(dim=2))


@pytest.mark.parametrize("build", [Recurrent, Turned])
@pytest.mark.parametrize("method", ["occlusion", "feature_ablation", "rise", "kernel_shap"])
def test_a_step_is_removed_with_all_its_features(build, method):
    found = layerlens.saliency(build(), normal(2, 6, 24), target=1, method=method)
    assert found.axes == ("batch", "time", "feature")
    assert torch.equal(found.tensor, found.tensor[..., :1].expand(2, 6, 24)) and found.tensor.any()


def test_occlusion_of_a_step_by_hand():
    model, x = Recurrent().double().eval(), normal(2, 6, 24).double()
    found = layerlens.saliency(model, x, target=1, method="occlusion", window=1).tensor
    for step in range(6):
        covered = x.clone()
        covered[:, step] = 0
        torch.testing.assert_close(found[:, step, 0], (model(x) - model(covered))[:, 1].detach())


def test_blur_is_along_time_and_maps_are_compared_by_step():
    model, x = Recurrent(), normal(12, 6, 24)
    x[:, :, 3] = 1.0  # a feature that never changes: a blur over features would
    assert layerlens.saliency(model, x, target=1, method="blur_ig").tensor[:, :, 3].abs().max() < 1e-6
    groups = layerlens.compare_groups(model, x, [0, 1] * 6, target=1, permutations=19, method="gradient")
    assert groups.attribution().axes == ("time",) and groups.attribution().p.shape == (1, 6)


@pytest.mark.parametrize(
    ("modules", "shape", "expected"),
    [
        ([nn.LSTM(24, 8)], (2, 6, 24), 1),
        ([nn.Linear(24, 8)], (2, 6, 24), 1),
        ([nn.Linear(6, 8)], (2, 6, 24), None),  # it reads the last axis, so not this input
        ([nn.ReLU(), nn.Conv1d(3, 8, 3)], (2, 3, 40), 2),
        ([nn.Conv1d(24, 8, 3)], (2, 6, 24), 1),
        ([nn.Conv1d(8, 8, 3)], (2, 8, 8), 2),
        ([nn.LSTM(8, 8)], (2, 8, 8), 1),
        ([nn.ReLU()], (2, 6, 24), None),
    ],
)
def test_the_axis_of_time(modules, shape, expected):
    assert time_axis(modules, shape) == expected
