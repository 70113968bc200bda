"""Maps as sums over blocks of places, and all numbers of a page as one array."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from layerlens.plotting.style import Array

SIDE: Final = 64
"""Most cells of a map along each of several axes."""

CELLS: Final = SIDE * SIDE
"""Most cells of a map."""

BYTES: Final = 16 / 3
"""Bytes of a number in the file: 4, in base64."""


View: TypeAlias = list[int]
"""A part of the array of numbers: place of its first number, then its shape."""


@dataclasses.dataclass
class Numbers:
    """All numbers of a page, float32, one after the other."""

    parts: list[Array] = dataclasses.field(default_factory=list)
    count: int = 0

    def add(self, values: Any) -> View:
        """Keep an array, and return where it is."""
        array = np.ascontiguousarray(values, dtype=np.float32)
        view = [self.count, *array.shape]
        self.parts.append(array.reshape(-1))
        self.count += array.size
        return view

    def joined(self) -> Array:
        """Return all of them."""
        return np.concatenate([np.zeros(0, dtype=np.float32), *self.parts])


def block_size(sizes: Sequence[int], most: int) -> int:
    """Return the smallest number of places along each axis of a block, so that a map has at most `most` cells.

    Along one of several axes a map has at most 64 cells.

    Example:
        >>> block_size((224, 224), 4096), block_size((2000,), 4096), block_size((2000,), 500)
        (4, 1, 4)
    """
    if not sizes:
        return 1
    side = SIDE if len(sizes) > 1 else CELLS
    fits = (
        block for block in itertools.count(1)
        if math.prod(cells := cells_of(sizes, block)) <= max(most, 1) and max(cells) <= side
    )  # fmt: skip
    return next(fits)


def cells_of(sizes: Sequence[int], block: int) -> list[int]:
    """Return the number of blocks along each axis; the last block may be smaller."""
    return [math.ceil(size / block) for size in sizes]


def pooled(values: Array, places: int, block: int) -> Array:
    """Return the sums over blocks of the last `places` axes, in float64, so that all cells sum to what all places do.

    Example:
        >>> pooled(np.arange(5.0), 1, 2)
        array([1., 5., 4.])
    """
    array = np.asarray(values, dtype=np.float64)
    if block > 1:
        for axis in range(array.ndim - places, array.ndim):
            array = np.add.reduceat(array, np.arange(0, array.shape[axis], block), axis=axis)
    return array


def averaged(values: Array, places: int, block: int) -> Array:
    """Return the means over the same blocks."""
    array = np.asarray(values, dtype=np.float64)
    sizes = array.shape[array.ndim - places :]
    return pooled(array, places, block) / pooled(np.ones(sizes), places, block)
