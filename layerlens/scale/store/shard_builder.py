"""The rows of one shard while it is filled, in memory allocated once instead of many small tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from layerlens.errors import RecordError
from layerlens.model.trees import describe

VALUES, SHAPES, IDS = "values/", "shapes/", "ids/"
"""Prefixes of column names in the names of a shard's tensors: the rows, the shape of each if they differ, and the
sample numbers if some samples have no row."""


def extend(spans: list[range], span: range) -> None:
    """Append a span of samples to others, joined with the last one if it follows that."""
    if spans and spans[-1].stop == span.start:
        span = range(spans.pop().start, span.stop)
    spans.append(span)


def numbers(spans: list[range]) -> torch.Tensor:
    """Return the samples of spans, int64 `(samples,)`."""
    return torch.cat([torch.arange(span.start, span.stop) for span in spans or [range(0)]])


class ColumnBuilder:
    """The rows of one quantity.

    Rows of one shape are in one block `(samples, ...)`. Once a row has another shape, all are kept flat, one after
    the other, with their shapes.
    """

    def __init__(self, capacity: int, first: torch.Tensor) -> None:
        self.capacity, self.filled = capacity, 0
        self.block = torch.empty((capacity, *first.shape[1:]), dtype=first.dtype)
        self.parts: list[torch.Tensor] | None = None
        self.shapes: list[tuple[int, ...]] = []
        self.ids: list[range] = []

    def add(self, ids: range, rows: torch.Tensor) -> None:
        """Append a copy of rows."""
        if self.parts is None and rows.shape[1:] != self.block.shape[1:]:
            self.parts = [self.block[: self.filled].reshape(-1)]
            self.shapes = [tuple(self.block.shape[1:])] * self.filled
        if self.parts is None:
            self.block[self.filled : self.filled + len(rows)].copy_(rows)
        else:
            self.parts.append(rows.reshape(-1).clone())
            self.shapes += [tuple(rows.shape[1:])] * len(rows)
        self.filled += len(rows)
        extend(self.ids, ids)

    def tensors(self, name: str, samples: list[range]) -> dict[str, torch.Tensor]:
        """Return the tensors of the column in the file."""
        found = {}
        if self.parts is None:
            found[VALUES + name] = self.block[: self.filled]
        else:
            most = max(map(len, self.shapes))
            padded = [(len(shape), *shape, *(0 for _ in range(most - len(shape)))) for shape in self.shapes]
            found[VALUES + name] = torch.cat(self.parts)
            found[SHAPES + name] = torch.tensor(padded, dtype=torch.int64)
        if self.ids != samples:
            found[IDS + name] = numbers(self.ids)
        return found


class ShardBuilder:
    """The rows of one shard.

    Args:
        capacity: most samples of the shard.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.columns: dict[str, ColumnBuilder] = {}
        self.result: dict[str, Any] = {}

    def add(self, ids: range, rows: Mapping[str, torch.Tensor], result: Callable[[], dict[str, Any]]) -> None:
        """Append rows `(len(ids), ...)` by column, and the results that all samples share, asked for once.

        Raises:
            RecordError: when a column changes its type; nothing is appended then.
        """
        for name, tensor in rows.items():
            kind = self.columns[name].block.dtype if name in self.columns else tensor.dtype
            if tensor.dtype != kind or len(tensor) != len(ids):
                raise RecordError(f"{name!r} is {describe(tensor)} for {len(ids)} sample(s), and was {kind} before.")
        for name, tensor in rows.items():
            if name not in self.columns:
                self.columns[name] = ColumnBuilder(self.capacity, tensor)
            self.columns[name].add(ids, tensor)
        self.result = self.result or result()

    def tensors(self, samples: list[range]) -> dict[str, torch.Tensor]:
        """Return the tensors of all columns in the file.

        Args:
            samples: samples of the shard that have rows.
        """
        return {
            name: tensor
            for own, column in self.columns.items()
            for name, tensor in column.tensors(own, samples).items()
        }
