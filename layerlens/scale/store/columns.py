"""One column of a store: the rows of every sample, read from the shards on use."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from layerlens.errors import OptionError, StoreError
from layerlens.model.trees import as_array

from .shard_builder import IDS, SHAPES, VALUES
from .shard_storage import Shard


class Column(Sequence[Any]):
    """The rows of one quantity, in the order of their samples.

    `column[3]` is a row; `column[10:20]` and `column[[4, 2]]` are several, stacked if they have one shape, else a list;
    `column.of(sample)` finds a row by the number of its sample.

    Attributes:
        name: name of the column.
    """

    def __init__(self, name: str, shards: Sequence[Shard]) -> None:
        self.name = name
        self._shards = [shard for shard in shards if VALUES + name in shard.names]
        self._counts = [self._count(shard) for shard in self._shards]
        self._length = sum(self._counts)
        self._starts = [sum(self._counts[:number]) for number in range(len(self._counts))]

    def _count(self, shard: Shard) -> int:
        ragged = SHAPES + self.name
        return shard.shape(ragged if ragged in shard.names else VALUES + self.name)[0]

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def shape(self) -> tuple[int, ...] | None:
        """`(rows, ...)`; None if rows differ in shape."""
        if any(SHAPES + self.name in shard.names for shard in self._shards):
            return None
        shapes = {shard.shape(VALUES + self.name)[1:] for shard in self._shards}
        return (len(self), *shapes.pop()) if len(shapes) == 1 else None

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return self._shards[0].view(VALUES + self.name).dtype

    @functools.cached_property
    def ids(self) -> torch.Tensor:
        """The sample number of each row, `(rows,)`."""
        own = IDS + self.name
        return torch.cat([shard.tensor(own if own in shard.names else "ids") for shard in self._shards])

    def of(self, sample: int) -> torch.Tensor:
        """Return the row of a sample.

        Raises:
            StoreError: when it has none.
        """
        place = int(torch.searchsorted(self.ids, sample))
        if place >= len(self) or int(self.ids[place]) != sample:
            raise StoreError(f"sample {sample} has no row in column {self.name!r}: it was not reached, or is bad.")
        return self._row(place)

    def _row(self, place: int) -> torch.Tensor:
        number = bisect.bisect_right(self._starts, place) - 1
        shard, row = self._shards[number], place - self._starts[number]
        if SHAPES + self.name not in shard.names:
            return shard.view(VALUES + self.name)[row].clone()
        coded = shard.view(SHAPES + self.name)[: row + 1].numpy()
        used = np.arange(1, coded.shape[1]) <= coded[:, :1]
        sizes = np.where(used, coded[:, 1:], 1).prod(axis=1)
        start, stop = int(sizes[:-1].sum()), int(sizes.sum())
        dims, *lengths = coded[-1].tolist()
        return shard.view(VALUES + self.name)[start:stop].clone().reshape(lengths[:dims])

    def __getitem__(self, index: Any) -> Any:
        """Return a row, or several; see the class.

        Raises:
            OptionError: when there is no such row.
        """
        try:
            places = range(len(self))[index] if isinstance(index, slice) else index
            if hasattr(places, "__index__") and not getattr(places, "shape", ()):
                single = range(len(self))[int(places)]
            else:
                single, chosen = None, [range(len(self))[int(place)] for place in places]
        except (IndexError, TypeError, ValueError) as error:
            raise OptionError(f"rows {index!r} are not in a column of {len(self)}.") from error
        if single is not None:
            return self._row(single)
        if self.shape is None:
            return [self._row(place) for place in chosen]
        if isinstance(index, slice) and index.step in (None, 1):
            return self._span(chosen)
        return self._gathered(chosen)

    def _span(self, places: Sequence[int]) -> torch.Tensor:
        """Read consecutive rows, shard by shard into one tensor."""
        block = self._block(len(places))
        if not places:
            return block
        start, stop = places[0], places[-1] + 1
        for begin, count, shard in zip(self._starts, self._counts, self._shards, strict=True):
            low, high = max(start, begin), min(stop, begin + count)
            if low < high:
                shard.read(VALUES + self.name, block[low - start : high - start], low - begin)
        return block

    def _gathered(self, places: Sequence[int]) -> torch.Tensor:
        """Read any rows, all of one shard at once."""
        block, wanted = self._block(len(places)), np.asarray(places, dtype=np.int64)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        target = _array(block)
        for number in dict.fromkeys(numbers.tolist()):  # numpy gathers rows five times faster
            here = np.flatnonzero(numbers == number)
            target[here] = _array(self._shards[number].view(VALUES + self.name))[wanted[here] - self._starts[number]]
        return block

    def _block(self, rows: int) -> torch.Tensor:
        assert self.shape is not None
        return torch.empty((rows, *self.shape[1:]), dtype=self.dtype)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Read the rows, one shard in memory at a time.

        Yields:
            The rows.
        """
        for shard in self._shards:
            values = shard.tensor(VALUES + self.name)
            if SHAPES + self.name not in shard.names:
                yield from values
                continue
            start = 0
            for one in shard.tensor(SHAPES + self.name):
                shape = _shape(one)
                stop = start + math.prod(shape)
                yield values[start:stop].reshape(shape)
                start = stop

    def tensor(self) -> torch.Tensor:
        """Return all rows as one tensor in memory.

        Raises:
            StoreError: when they differ in shape.
        """
        if self.shape is None:
            raise StoreError(f"the rows of column {self.name!r} differ in shape; read them one by one.")
        return self._span(range(len(self)))

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return all rows as one array in memory; bfloat16 becomes float32."""
        return as_array(self.tensor())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Return the array of `np.asarray(column)`."""
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __repr__(self) -> str:
        shape = f"{len(self)} rows of different shapes" if self.shape is None else str(self.shape)
        return f"Column({self.name}: {str(self.dtype).removeprefix('torch.')} {shape}, {len(self._shards)} shards)"


def _shape(coded: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a row from its number of axes and their lengths."""
    dims, *sizes = coded.tolist()
    return tuple(sizes[:dims])


def _array(rows: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return rows as an array on the same memory, `(rows, numbers)`; unknown types as integers of their size."""
    flat = rows.reshape(len(rows), -1)
    odd = rows.is_floating_point() and rows.dtype not in (torch.float16, torch.float32, torch.float64)
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    found: np.ndarray[Any, Any] = (
        flat.view(kinds[rows.itemsize]) if odd or rows.dtype == torch.complex32 else flat
    ).numpy()
    return found
