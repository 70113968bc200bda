"""The grid of places in a layer's output: the area of a convolution, or the patch tokens of a vision transformer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import torch

from ...axes import Axes

MOST_EXTRA = 8
"""Leading tokens that are no patches: a class token, a distillation token, registers."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """How to see a layer's output as `(batch, unit, height, width)`.

    Attributes:
        height: places.
        width: places.
        order: the axes of the output as `(batch, unit, height, width)`, or `(batch, unit, token)`.
        extra: leading tokens to drop.
    """

    height: int
    width: int
    order: tuple[int, ...]
    extra: int = 0

    def view(self, output: torch.Tensor) -> torch.Tensor:
        """`output` as `(batch, unit, height, width)`."""
        moved = output.permute(self.order)
        if len(self.order) == 4:
            return moved
        return moved[:, :, self.extra :].reshape(*moved.shape[:2], self.height, self.width)


def grid_of(
    shape: tuple[int, ...], axes: Axes, image: tuple[int, int], known: Mapping[tuple[int, int], bool] | None = None
) -> Grid | None:
    """The grid of an output of this shape, or None when it has none with more than one place.

    Tokens lie on a grid with the aspect of the image, after the fewest leading tokens that leave such a number. Where
    the grids of convolutions are known, it must be one of those, or without leading tokens one of them halved: other
    tokens (object queries) are no patches.

    Args:
        shape: of the output.
        axes: their names.
        image: (height, width) of the input.
        known: what `patch_grids` found in the same run.
    """
    unit = "channel" if "channel" in axes else "feature"
    if len(shape) == 4 and {"batch", unit, "height", "width"} == set(axes):
        order = tuple(axes.index(name) for name in ("batch", unit, "height", "width"))
        height, width = shape[order[2]], shape[order[3]]
        return Grid(height, width, order) if height * width > 1 else None
    if len(shape) == 3 and {"batch", "token", "feature"} == set(axes):
        order = tuple(axes.index(name) for name in ("batch", "feature", "token"))
        for extra in range(min(MOST_EXTRA, shape[order[2]] - 1) + 1):
            sides = _sides(shape[order[2]] - extra, image)
            if sides is not None and (not known or known.get(sides, False) or (sides in known and not extra)):
                return Grid(*sides, order, extra)
    return None


def _sides(places: int, image: tuple[int, int]) -> tuple[int, int] | None:
    """(height, width) with this product and the aspect of the image exactly, or None."""
    height = math.isqrt(max(1, places * image[0] // image[1]))
    if places <= 1 or places % height:
        return None
    width = places // height
    return (height, width) if height * image[1] == width * image[0] else None


def patch_grids(shapes: Iterable[tuple[tuple[int, ...] | None, Axes | None]]) -> dict[tuple[int, int], bool]:
    """(height, width) of layers with places: True; and of those halved again, as by merging patches: False."""
    exact: set[tuple[int, int]] = set()
    for shape, axes in shapes:
        if shape is not None and axes is not None and {"height", "width"} <= set(axes):
            exact.add((shape[axes.index("height")], shape[axes.index("width")]))
    found = dict.fromkeys(exact, True)
    for height, width in exact:
        while height * width > 1:
            height, width = -(-height // 2), -(-width // 2)
            found.setdefault((height, width), False)
    return found
