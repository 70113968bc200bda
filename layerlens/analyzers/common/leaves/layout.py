"""How a leaf is laid out: which axis of a sample is that of channels or features, and which are places."""

from __future__ import annotations

from .leaves import Leaf


def unit_and_places(leaf: Leaf) -> tuple[int | None, list[int]]:
    """The axis of channels or features of a sample (None where there is none), and the axes that are places.

    Of a series `(batch, channel, time)` or `(batch, time, feature)` time is what no layer reads as channels or
    features, and where none tells, the longer one.
    """
    sizes = leaf.value.shape[1:]
    axes = leaf.axes if leaf.place is None else leaf.place.axes
    if axes is not None and len(axes) == leaf.value.ndim:
        unit = next((axes.index(one) - 1 for one in ("channel", "feature") if one in axes), None)
        return unit, [axis for axis in range(len(sizes)) if axis != unit] or [0]
    if len(sizes) == 1:
        return None, [0]
    if len(sizes) == 2:
        return (0, [1]) if sizes[1] >= sizes[0] else (1, [0])
    return 0, list(range(1, len(sizes)))


def place_axes(leaf: Leaf) -> list[int]:
    """The axes of a sample that are places: tokens, steps, pixels, the columns of a table; none of a single id."""
    return list(range(leaf.value.ndim - 2)) if leaf.layer is not None else unit_and_places(leaf)[1]


def spread_axes(leaf: Leaf) -> list[int]:
    """The axes of the whole batch along which neighbours are alike: pixels, voxels, frames, steps.

    Empty for token ids and for tables, whose places have no order.
    """
    if leaf.layer is not None or leaf.value.ndim < 3:
        return []
    return [axis + 1 for axis in unit_and_places(leaf)[1]]
