"""The parts of a value: all of it, its channels, heads, positions or single numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from layerlens.axes.names import Axes

By = Literal["layer", "channel", "head", "position", "unit", "layer_position"]
KINDS: tuple[str, ...] = get_args(By)

Cut = tuple[tuple[int, int, int], ...]
"""Axis, first entry and number of entries, for each axis along which a part is smaller than the whole."""

NO_POSITIONS = "has no axis of positions"

UNITS = ("channel", "feature")
"""Names of the axis of channels or features."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a tensor is cut into parts.

    Attributes:
        axes: axes along which parts lie; none for the tensor as a whole.
        counts: number of parts along each axis.
        widths: number of entries of a part along each axis.
    """

    axes: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """The number of parts."""
        return torch.Size(self.counts).numel()

    def index(self, number: int) -> tuple[int, ...]:
        """Return the index of a part along each axis."""
        places = []
        for count in reversed(self.counts):
            number, place = divmod(number, count)
            places.append(place)
        return tuple(reversed(places))

    def cut(self, number: int) -> Cut:
        """Return where a part is in the tensor."""
        return tuple(
            (axis, place * width, width)
            for axis, place, width in zip(self.axes, self.index(number), self.widths, strict=True)
        )

    def sums(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over each part, `(parts,)`."""
        others = [axis for axis in range(tensor.ndim) if axis not in self.axes]
        rest = tensor.sum(dim=others) if others else tensor
        for place, count in enumerate(self.counts):
            rest = split(rest, place, count).sum(dim=place + 1)
        return rest.reshape(-1)


def grid(by: str, shape: Sequence[int], names: Axes, heads: tuple[int, int] = (0, 0)) -> Grid | str:
    """Return the parts of a tensor, or why it has none.

    Args:
        by: one of `KINDS`.
        shape: shape of the tensor.
        names: names of its axes; parts never lie along `"batch"`.
        heads: number of heads and number of features of each; 0 if it follows from the other.
    """
    unit = next((axis for axis, name in enumerate(names) if name in UNITS), None)
    inner = [axis for axis, name in enumerate(names) if name != "batch" and axis != unit and shape[axis] > 1]
    places = [axis for axis in inner if names[axis] != "layer"]
    if by == "layer":
        return Grid()
    if by == "head":
        count, width = heads
        features = shape[-1] if unit is None else shape[unit]
        count, width = count or features // width, width or features // count
        if not count or count * width != features:
            return f"has {features} features before its projection, which are not {heads[0] or ''} heads of one size"
        return Grid((len(shape) - 1 if unit is None else unit,), (count,), (width,))
    if by == "channel":
        axes = [] if unit is None else [unit]
    elif by == "unit":
        axes = [axis for axis, name in enumerate(names) if name != "batch" and (axis == unit or axis in inner)]
    elif not places:
        return NO_POSITIONS
    else:
        axes = places
    return Grid(tuple(axes), tuple(shape[axis] for axis in axes), (1,) * len(axes))


def split(tensor: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    """Split an axis in two: `count` parts that follow each other, and the entries of each."""
    shape = tensor.shape
    return tensor.reshape(*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])


def narrow(tensor: torch.Tensor, cut: Cut, axis: int | None = None) -> torch.Tensor:
    """Return a view of the part; `axis` is one that was inserted into the tensor after the cut was made."""
    for place, start, length in cut:
        tensor = tensor.narrow(place + (axis is not None and place >= axis), start, length)
    return tensor
