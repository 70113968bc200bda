"""Maps enlarged to the input by the position of every place."""

import numpy as np
import pytest
import torch
from torch import nn

from layerlens.axes.layout import Grid
from layerlens.axes.placement import even_grid, placed, spread


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
