"""What the axes of an input are is what the model does with them: series, tables, pictures of any layout."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.common.leaves.leaves import find_leaves, spread_axes, unit_and_places
from layerlens.analyzers.faithfulness.controls import controls_for
from layerlens.inputs.inputs import as_inputs
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


class Mean(nn.Module):
    """A layer, and the mean of what it returns."""

    def __init__(self, layer, view=None):
        super().__init__()
        self.layer, self.view = layer, view or (lambda x: x)

    def forward(self, x):
        out = self.layer(self.view(x))
        return (out[0] if isinstance(out, tuple) else out).flatten(2).mean(dim=2)


class Patches(nn.Module):
    """A linear layer over patches of a picture with its channels last: no convolution, no class that tells."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(2 * 2 * 3, 5), nn.Linear(5, 2)

    def forward(self, x):
        b, h, w, c = x.shape
        patches = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).flatten(3)
        return self.head(self.embed(patches).tanh().mean(dim=(1, 2)))


def leaf_of(model, x):
    (found,) = find_leaves(model.eval(), as_inputs(x), None).values()
    return found


FIRST, LAST = ("batch", "channel", "time"), ("batch", "time", "feature")


@pytest.mark.parametrize(
    ("model", "shape", "axes"),
    [
        (Mean(nn.LSTM(24, 8, batch_first=True)), (2, 6, 24), LAST),
        (Mean(nn.Linear(24, 8)), (2, 6, 24), LAST),
        (Mean(nn.Linear(6, 8), lambda x: x.mT), (2, 6, 24), FIRST),
        (Mean(nn.Conv1d(3, 8, 3)), (2, 3, 40), FIRST),
        (Mean(nn.Conv1d(24, 8, 3), lambda x: x.mT), (2, 6, 24), LAST),
        (Mean(nn.Conv1d(8, 8, 3)), (2, 8, 8), FIRST),
        (Mean(nn.LSTM(8, 8, batch_first=True)), (2, 8, 8), LAST),
        (Mean(nn.ReLU()), (2, 6, 24), None),
        (nn.Sequential(nn.Flatten(), nn.Linear(24, 24), nn.Linear(24, 6)), (2, 6, 4), None),  # 24 and 6 mean nothing
    ],
)
def test_the_axes_of_a_series(model, shape, axes):
    assert leaf_of(model, normal(*shape)).axes == axes


def test_a_series_of_which_nothing_is_known_is_read_with_a_warning():
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(24, 2)), normal(2, 3, 8)
    with pytest.warns(UserWarning, match=r"axis 2. If it is not, name the axes: .*'batch', 'time', 'feature'"):
        found = layerlens.saliency(model, x, target=1, method="feature_ablation")
    assert found.axes == FIRST and torch.equal(found.tensor, found.tensor[:, :1].expand(2, 3, 8))
    lens = layerlens.Lens(model, axes={"0": LAST})
    named = lens.saliency(x, target=1, method="feature_ablation")
    assert named.axes == LAST and torch.equal(named.tensor, named.tensor[..., :1].expand(2, 3, 8))


@pytest.mark.parametrize(
    ("model", "shape", "picture", "unit", "spread"),
    [
        (Mean(nn.Conv2d(3, 4, 3)), (2, 3, 8, 8), True, 0, [2, 3]),
        (Mean(nn.Conv2d(5, 4, 3)), (2, 5, 8, 8), True, 0, [2, 3]),
        (Mean(nn.Conv2d(4, 4, 3), lambda x: x.permute(0, 3, 1, 2)), (2, 3, 8, 4), True, 2, [1, 2]),
        (Patches(), (2, 4, 6, 3), True, 2, [1, 2]),
        (Patches(), (1, 4, 6, 3), True, 2, [1, 2]),
        (nn.Sequential(nn.Flatten(), nn.Linear(75, 2)), (2, 3, 5, 5), True, 0, [2, 3]),
        (Mean(nn.Linear(5, 4)), (2, 3, 6, 5), False, 2, []),  # a table
        (Mean(nn.Linear(5, 4)), (2, 1, 6, 5), False, 2, []),
        (Mean(nn.Conv3d(3, 4, 2)), (2, 3, 5, 5, 5), False, 0, [2, 3, 4]),
    ],
)
def test_what_is_a_picture(model, shape, picture, unit, spread):
    leaf = leaf_of(model, normal(*shape))
    assert leaf.is_picture == picture and unit_and_places(leaf)[0] == unit and spread_axes(leaf) == spread


def test_a_cell_of_a_table_is_removed_with_its_features_and_has_no_neighbors():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Flatten(), nn.Linear(72, 2)).double(), normal(2, 3, 6, 5)
    x = x.double()
    found = layerlens.saliency(model, x, target=1, method="occlusion", window=1)
    assert found.axes == ("batch", "axis 1", "axis 2", "channel")
    covered = x.clone()
    covered[:, 2, 3] = 0
    wanted = (model(x) - model(covered))[:, 1].detach()
    torch.testing.assert_close(found.tensor[:, 2, 3], wanted[:, None].expand(2, 5))
    with pytest.raises(layerlens.errors.OptionError, match="is for images"):
        layerlens.saliency(model, x, target=1, baseline="blur")


def test_controls_and_superpixels_of_a_picture_with_its_channels_last():
    x = normal(2, 12, 16, 3)
    last, first = leaf_of(Patches(), x), leaf_of(Mean(nn.Conv2d(3, 4, 3)), x.permute(0, 3, 1, 2))
    for name, control in controls_for(first).items():
        torch.testing.assert_close(controls_for(last)[name](last, 0), control(first, 0))
    options = {"method": "feature_ablation", "features": "superpixels", "target": 1}
    turned = lambda model, x: model(x.permute(0, 2, 3, 1).contiguous())  # noqa: E731
    found = layerlens.saliency(Patches(), x, **options).tensor
    wanted = layerlens.saliency(Patches(), x.permute(0, 3, 1, 2).contiguous(), forward=turned, **options).tensor
    torch.testing.assert_close(found, wanted.permute(0, 2, 3, 1))
    table = leaf_of(Mean(nn.Linear(5, 4)), normal(2, 3, 6, 5))
    assert "sobel" not in controls_for(table)
