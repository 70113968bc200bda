"""The parts of a value: all of it, its channels, heads, positions or single numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import torch

By = Literal["layer", "channel", "head", "position", "unit", "layer_position"]
KINDS: tuple[str, ...] = get_args(By)

Cut = tuple[tuple[int, int, int], ...]
"""Axis, first entry and number of entries, for each axis along which a part is smaller than the whole."""

NO_POSITIONS = "has no axis of positions"


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


def grid(by: str, shape: Sequence[int], roles: Sequence[str] | str, heads: int = 0) -> Grid | str:
    """Return the parts of a tensor, or why it has none.

    Args:
        by: one of `KINDS`.
        shape: shape of the tensor.
        roles: what each axis counts; parts never lie along `"batch"`. Or why that is unknown.
        heads: number of heads.
    """
    if by == "layer":
        return Grid()
    if isinstance(roles, str):
        return roles
    units = [axis for axis, role in enumerate(roles) if role == "unit"]
    places = [axis for axis, role in enumerate(roles) if role in ("place", "key", "mixed") and shape[axis] > 1]
    if by == "head":
        apart = [axis for axis, role in enumerate(roles) if role == "head"]
        if len(apart) == 1 and shape[apart[0]] == heads:
            return Grid((apart[0],), (heads,), (1,))
        features = shape[units[-1]] if units else 0
        if not features or features % heads:
            return f"has {features} features before its projection, which are not {heads} heads of one size"
        return Grid((units[-1],), (heads,), (features // heads,))
    if by == "unit":
        axes = [axis for axis, role in enumerate(roles) if role != "batch" and (axis in units or shape[axis] > 1)]
    elif by == "channel":
        axes = units
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
