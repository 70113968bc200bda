"""Maps enlarged to the input by the position of every place."""

import numpy as np
import pytest
import torch
from torch import nn

from layerlens.axes.followed import followed
from layerlens.axes.layout import Grid, grid
from layerlens.axes.placement import even_grid, placed, spread
from layerlens.inputs.inputs import as_inputs


def grid_1d(size, stride, offset, extent):
    return Grid("0", (2,), ("time",), (size,), (stride,), (offset,), (extent,))


@pytest.mark.parametrize("stride", [1.0, 2.0, 3.5, -2.0])
@pytest.mark.parametrize("offset", [0.0, -31.5, 4.25, 20.0])
def test_values_are_interpolated_between_the_centers(stride, offset):
    maps = torch.randn(2, 7, dtype=torch.float64)
    at = offset + stride * np.arange(7)
    order = np.argsort(at)
    expected = np.stack([np.interp(np.arange(24), at[order], line.numpy()[order]) for line in maps])
    np.testing.assert_allclose(placed(maps, grid_1d(7, stride, offset, 24)), expected, atol=1e-12)


def test_places_that_tile_the_input_are_enlarged_as_torch_does():
    for sizes, extents in (((3, 5), (12, 15)), ((2, 3, 4), (4, 6, 4)), ((1,), (5,))):
        maps = torch.randn(2, *sizes, dtype=torch.float64)
        axes = tuple(range(2, 2 + len(sizes)))
        found = placed(maps, even_grid("0", axes, ("a", "b", "c")[: len(sizes)], sizes, extents))
        mode = ("linear", "bilinear", "trilinear")[len(sizes) - 1]
        expected = nn.functional.interpolate(maps[:, None], size=extents, mode=mode, align_corners=False)[:, 0]
        torch.testing.assert_close(found, expected)


def test_blocks_are_the_cells_of_the_places_and_nothing_outside():
    found = placed(torch.tensor([[1.0, 2.0]]), grid_1d(2, 3, 2, 10), blocks=True)  # cells 1-3 and 4-6
    assert found.tolist() == [[0, 1, 1, 1, 2, 2, 2, 0, 0, 0]]


def test_a_map_multiplies_an_input():
    image = torch.ones(2, 3, 4, 5)
    maps = torch.arange(40.0).reshape(2, 4, 5)
    over = even_grid("0", (2, 3), ("height", "width"), (4, 5), (4, 5))
    assert torch.equal((image * spread(maps, over, 4))[:, 1], maps)


class Branches(nn.Module):
    """A window and a shortcut, both with stride 2."""

    def __init__(self):
        super().__init__()
        self.window, self.shortcut = nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(2, 3, 1, 2)

    def forward(self, x):
        return self.window(x) + self.shortcut(x)


CENTERED = {
    "even kernels": lambda: nn.Sequential(nn.Conv2d(2, 3, 4, 2, 1), nn.Conv2d(3, 3, 2)),
    "even kernels, as many places": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 4, padding="same"), nn.Conv2d(3, 3, 2, padding="same")
    ),
    "padded behind": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(2, 3, 3, 2), nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(3, 3, 5, 2)
    ),
    "padded in front": lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 2, 0)), nn.Conv2d(2, 3, 2), nn.Conv2d(3, 3, 3, 2)),
    "dilated": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1, dilation=2), nn.Conv2d(3, 3, (2, 3), dilation=(3, 1))),
    "without padding": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 2), nn.ReLU(), nn.Conv2d(3, 3, 3, 2)),
    "stride 3": lambda: nn.Conv2d(2, 3, 5, 3, 1),
    "mean, ceil_mode": lambda: nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True), nn.Conv2d(2, 3, 3, 1, 1)),
    "maximum, ceil_mode": lambda: nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=True), nn.MaxPool2d(3, 2, ceil_mode=True)),
    "transposed": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.ConvTranspose2d(3, 3, 4, 2, 1)),
    "strided branches": Branches,
}


SLACK = {"maximum, ceil_mode": 0.25, "transposed": 0.51}  # chance; a place between two of which it reads both evenly


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("kind", CENTERED)
def test_places_lie_in_the_middle_of_what_they_read(kind):
    torch.manual_seed(0)
    model, x = CENTERED[kind]().double().eval(), torch.rand(128, 2, 29, 36, dtype=torch.float64).requires_grad_()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)  # each window is read evenly
    site = followed(model, as_inputs(x.detach()), None).site("", 0)
    places, output = grid(site.outputs[""]), model(x)
    assert places.sizes == output.shape[2:]
    middle = [(size // 2 - 1, size // 2, size // 2 + 1) for size in places.sizes]
    for index in zip(*middle, strict=True):
        (slope,) = torch.autograd.grad(output[:, :, index[0], index[1]].sum(), x, retain_graph=True)
        for axis in range(2):
            lines = slope.abs().sum(dim=(0, 1, 3 - axis))
            center = float((lines * torch.arange(len(lines))).sum() / lines.sum())
            stated = places.offsets[axis] + places.strides[axis] * index[axis]
            assert abs(center - stated) < SLACK.get(kind, 1e-9), (index, axis, center, stated)


def test_rolled_rows_with_others_between_them_are_not_a_grid():
    """Turned back, they are not evenly spaced."""

    class Rolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(1, 1, 1, 2)

        def forward(self, x):
            return self.up(x.roll(1, 2))

    axes = followed(Rolled(), as_inputs(torch.zeros(2, 1, 4, 4))).output[""]
    assert grid(axes) is None
