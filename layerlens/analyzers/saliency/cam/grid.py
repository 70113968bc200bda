"""The grid of places in a layer's output: of a convolution, patch tokens, time steps, or video frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import torch

from layerlens.axes.names import Axes

MOST_EXTRA = 8
"""Most leading tokens that are not patches: a class token, a distillation token, registers."""

SERIES = ("time", "length", "token")
"""Names of an axis of places in a row."""

Reshape = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Grid:
    """How to see a layer's output as `(batch, unit, *places)`.

    Attributes:
        places: how many along each axis.
        order: the axes of the output as `(batch, unit, *places)`, or `(batch, unit, token)`.
        extra: leading tokens to drop.
        fold: rows of the output that belong to one sample: the frames of a video that a network for images reads.
        reshape: function of the caller that makes the view instead.
    """

    places: tuple[int, ...]
    order: tuple[int, ...]
    extra: int = 0
    fold: int = 1
    reshape: Reshape | None = None

    def view(self, output: torch.Tensor) -> torch.Tensor:
        """`output` as `(batch, unit, *places)`."""
        if self.reshape is not None:
            return self.reshape(output)
        moved = output.permute(self.order)
        if self.fold > 1:
            return moved.reshape(-1, self.fold, *moved.shape[1:]).transpose(1, 2)
        if len(self.order) > 3:
            return moved
        return moved[:, :, self.extra :].reshape(*moved.shape[:2], *self.places)

    def without(self, output: torch.Tensor, units: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """A copy of `output` in which `units[i]` of row `rows[i]` is zero at every place; other tokens stay."""
        changed = output.clone()
        moved = changed.permute(self.order)  # a view
        index = units.repeat_interleave(self.fold)
        folds = rows.unsqueeze(1) * self.fold + torch.arange(self.fold, device=rows.device)
        moved[folds.flatten(), index, self.extra :] = 0
        return changed


def grid_of(
    shape: tuple[int, ...],
    axes: Axes,
    size: tuple[int, ...],
    known: Mapping[tuple[int, int], bool] | None = None,
    fold: int = 1,
) -> Grid | None:
    """The grid of an output of this shape, or None when it has none with more than one place.

    Tokens over an image lie on a grid that a convolution of the same run has, after the fewest leading tokens that
    leave such a number, or without leading tokens on one of those halved; other tokens (object queries) are not
    patches.
    Where no grid is known it has the aspect of the image.

    Args:
        shape: shape of the output.
        axes: names of its axes.
        size: size of the input: (height, width), (depth, height, width), or (length,).
        known: what `patch_grids` found in the same run.
        fold: rows of the output for one sample.
    """
    unit = "channel" if "channel" in axes else "feature"
    if "batch" not in axes or unit not in axes:
        return None
    names = tuple(name for name in axes if name not in ("batch", unit))
    order = tuple(axes.index(name) for name in ("batch", unit, *names))
    counts = tuple(shape[axis] for axis in order[2:])
    if fold > 1:
        folded = names == ("height", "width") and len(size) == 3 and math.prod(counts) > 1
        return Grid((fold, *counts), order, fold=fold) if folded else None
    if names in (("height", "width"), ("depth", "height", "width")):
        return Grid(counts, order) if len(size) == len(names) and math.prod(counts) > 1 else None
    if len(names) != 1 or names[0] not in SERIES:
        return None
    if len(size) == 1:
        return Grid(counts, order) if counts[0] > 1 else None
    if len(size) == 2 and names == ("token",):
        for extra in range(min(MOST_EXTRA, counts[0] - 1) + 1):
            sides = _sides(counts[0] - extra, (size[0], size[1]), known or {}, exact=bool(extra))
            if sides is not None:
                return Grid(sides, order, extra)
    return None


def asked_grid(shape: tuple[int, ...], axes: Axes, places: tuple[int, ...]) -> Grid | None:
    """The output as the caller says: tokens on a grid of `places` after what is left over, or None if it has fewer."""
    unit = "channel" if "channel" in axes else "feature"
    if "batch" not in axes or unit not in axes:
        return None
    names = tuple(name for name in axes if name not in ("batch", unit))
    order = tuple(axes.index(name) for name in ("batch", unit, *names))
    counts = tuple(shape[axis] for axis in order[2:])
    if len(names) == 1 and counts[0] >= math.prod(places):
        return Grid(places, order, counts[0] - math.prod(places))
    return Grid(counts, order) if counts == places else None


def _sides(
    places: int, image: tuple[int, int], known: Mapping[tuple[int, int], bool], exact: bool
) -> tuple[int, int] | None:
    """(height, width) with this product: a known grid, else one with exactly the aspect of the image; or None."""
    if places <= 1:
        return None
    fit = [sides for sides, full in known.items() if math.prod(sides) == places and (full or not exact)]
    if known:
        return min(fit, key=lambda sides: abs(sides[0] * image[1] - sides[1] * image[0]), default=None)
    height = math.isqrt(max(1, places * image[0] // image[1]))
    if places % height:
        return None
    width = places // height
    return (height, width) if height * image[1] == width * image[0] else None


def patch_grids(shapes: Iterable[tuple[tuple[int, ...] | None, Axes | None]]) -> dict[tuple[int, int], bool]:
    """(height, width) of layers with places: True; and of those halved again, as by merging patches: False."""
    exact: set[tuple[int, int]] = set()
    for shape, axes in shapes:
        if shape is not None and axes is not None and {"height", "width"} <= set(axes):
            exact.add((shape[axes.index("height")], shape[axes.index("width")]))
    grids = dict.fromkeys(exact, True)
    for height, width in exact:
        while height * width > 1:
            height, width = -(-height // 2), -(-width // 2)
            grids.setdefault((height, width), False)
    return grids
