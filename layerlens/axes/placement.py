"""Maps on a grid of places, enlarged to the input by the position of every place."""

from __future__ import annotations

import torch

from .layout import Grid


def placed(maps: torch.Tensor, grid: Grid, *, blocks: bool = False) -> torch.Tensor:
    """Enlarge maps to the input that the places of a grid belong to.

    Between the centers of the places a map is interpolated linearly, along one axis after another; beyond the outermost
    centers it keeps the outermost value. A map of places that tile the input is the same as one enlarged by
    `F.interpolate(..., align_corners=False)`; other maps are where the model has them: a letter box is cut off, a crop
    is in its position.

    Args:
        maps: values of the places, `(n, *grid.sizes)`.
        grid: the places.
        blocks: whether each entry of the input has the value of the place whose cell it lies in, and 0 in none.

    Returns:
        Shape `(n, *grid.extents)`.

    Example:
        >>> placed(torch.tensor([[0.0, 1.0]]), Grid("0", (2,), ("time",), (2,), (2.0,), (0.5,), (4,)))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
    """
    whole = enumerate(zip(grid.sizes, grid.strides, grid.offsets, grid.extents, strict=True), start=1)
    for axis, (size, stride, offset, extent) in whole:
        at = (torch.arange(extent, dtype=torch.float64, device=maps.device) - offset) / stride
        shape = [-1 if other == axis else 1 for other in range(maps.ndim)]
        near = at.clamp(0, size - 1)
        if blocks:
            inside = ((at >= -0.5) & (at < size - 0.5)).reshape(shape)
            maps = maps.index_select(axis, (near + 0.5).floor().long()) * inside
            continue
        low = near.floor().long()
        part = (near - low).to(maps.dtype).reshape(shape)
        maps = torch.lerp(maps.index_select(axis, low), maps.index_select(axis, (low + 1).clamp(max=size - 1)), part)
    return maps


def spread(maps: torch.Tensor, grid: Grid, ndim: int) -> torch.Tensor:
    """Return maps `(n, *places)` with axes of length 1, so that they multiply an input of `ndim` axes."""
    shape = [len(maps), *[1] * (ndim - 1)]
    for axis, size in zip(grid.axes, maps.shape[1:], strict=True):
        shape[axis] = size
    return maps.reshape(shape)


def even_grid(name: str, axes: tuple[int, ...], names: tuple[str, ...], sizes: tuple[int, ...],
              extents: tuple[int, ...]) -> Grid:  # fmt: skip
    """Return a grid whose places tile the input evenly."""
    strides = tuple(extent / size for extent, size in zip(extents, sizes, strict=True))
    return Grid(name, axes, names, sizes, strides, tuple((stride - 1) / 2 for stride in strides), extents)
