"""Data sets of every kind as sources of samples by number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from layerlens.errors import InputError, OptionError
from layerlens.inputs.batches import Batch, Read
from layerlens.inputs.inputs import Inputs
from layerlens.inputs.misfit import refuse_pair
from layerlens.inputs.tables import is_frame
from layerlens.model.trees import describe

from .source import Source, Stream


class Rows:
    """Samples along the first axis of tensors or arrays; it can be sent to other processes."""

    def __init__(self, data: Any, count: int) -> None:
        self.data, self.count = data, count

    def __call__(self, span: range) -> Any:
        """Return some rows."""
        if not isinstance(self.data, Mapping):
            return _span(self.data, span)
        return {
            name: _span(part, span) if _has_rows(part) and len(part) == self.count else part
            for name, part in self.data.items()
        }


def _span(data: Any, span: range) -> Any:
    return (data.iloc if is_frame(data) else data)[span.start : span.stop]


class Collated:
    """Samples of a DataLoader's data set, collated as the loader does."""

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def __call__(self, span: range) -> Any:
        """Return a batch."""
        several = getattr(self.dataset, "__getitems__", None)  # as the loaders of torch do
        return self.collate([self.dataset[index] for index in span] if several is None else several(list(span)))


BATCH = 16
"""Samples that run together by default."""
MOST_ROWS = 4096
"""Rows of a table that run together at most."""
WORK = 2**24
"""Multiplications by the weights of a model that pay for the fixed price of a batch."""


def batch_of(data: Any, source: Source | None = None, model: nn.Module | None = None) -> int:
    """Return how many samples run together: the batch size of a DataLoader that has one, else 16.

    Rows of a few numbers through a small model take less time than what a batch costs, so more of them run together.
    """
    if isinstance(data, DataLoader) and data.batch_size:
        return data.batch_size
    if model is None or source is None or not source.random:
        return BATCH
    first = source.first()
    tensors = list(first.inputs.tensors().values()) if isinstance(first, Batch) else []
    if not tensors or not all(one.is_floating_point() and one.ndim <= 2 for one in tensors):
        return BATCH
    work = sum(one.numel() for one in (*tensors, *model.parameters()))
    return 1 << max(BATCH, min(MOST_ROWS, WORK // work)).bit_length() - 1


def as_source(data: Any, read: Read, workers: int = 0) -> Source:
    """Return a data set as a source of samples.

    Args:
        data: a tensor, an array, a DataFrame or a dict of them, with samples along the first axis; a sequence or
            map-style Dataset of samples `x` or `(x, label)`; a DataLoader that does not shuffle; or an iterable of
            samples.
        read: turns a batch, or one text, into model inputs.
        workers: processes that read ahead.

    Raises:
        InputError: when it is none of these, or a DataLoader shuffles.
        OptionError: when `workers` is not a whole number of at least 0.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise OptionError(f"workers must be a whole number of at least 0, got {workers!r}.")
    if isinstance(data, (str, Inputs)):
        raise InputError("data must have several samples; give an iterable of them.")
    refuse_pair(data)
    if isinstance(data, (torch.Tensor, np.ndarray, Mapping)) or is_frame(data):
        count = _length(data)
        rows = Rows(data, count)
        return Source(rows, rows, count, describe(data), read, workers)
    if isinstance(data, DataLoader):
        return _loader(data, read, workers or data.num_workers)
    kind = type(data).__name__
    item = getattr(data, "__getitem__", None)
    if item is not None and isinstance(data, Sized) and not isinstance(data, IterableDataset):
        return Source(item, None, len(data), kind, read, workers)
    if not isinstance(data, Iterable):
        raise InputError(
            f"data is {describe(data)}; give a tensor, a Dataset, a DataLoader, or an iterable of samples."
        )
    return Stream(lambda: iter(data), kind, read)


def _loader(data: DataLoader[Any], read: Read, workers: int) -> Source:
    """Return a DataLoader as a source.

    Raises:
        InputError: when it shuffles.
    """
    if isinstance(data.dataset, IterableDataset):
        if data.batch_sampler is None:
            return Stream(lambda: iter(data), "DataLoader of a stream", read)
        return Stream(lambda: _unpacked(data), "DataLoader of a stream", read)
    sampler = data.sampler if data.batch_sampler is None else getattr(data.batch_sampler, "sampler", None)
    if not isinstance(sampler, SequentialSampler):
        how = "shuffles" if isinstance(sampler, RandomSampler) else "has its own sampler"
        raise InputError(
            f"the DataLoader {how}, so a sample's number would mean another sample at the next start. Give its "
            "dataset, or a DataLoader with shuffle=False."
        )
    if data.batch_sampler is None:
        return as_source(data.dataset, read, workers)
    dataset: Any = data.dataset
    count = len(dataset)
    if data.drop_last and data.batch_size:
        count -= count % data.batch_size
    collated = Collated(dataset, data.collate_fn)
    kind = f"DataLoader of {type(dataset).__name__}"
    return Source(dataset.__getitem__, collated, count, kind, read, workers)


def _unpacked(loader: DataLoader[Any]) -> Iterator[Any]:
    """Split the batches of a loader into samples without reading them; bad samples are noted on reading.

    Yields:
        The samples.
    """
    for item in loader:
        count = _length_of(item)
        for row in range(count):
            yield _row(item, row, count)


def _length_of(item: object) -> int:
    """Return the number of samples in a batch: the length of its first part that has one.

    Raises:
        InputError: when no part has one.
    """
    sizes = [len(part) for part in _leaves(item)]
    if not sizes:
        raise InputError(f"the DataLoader gave {describe(item)}, which is not a batch of samples.")
    return sizes[0]


def _leaves(item: object) -> Iterator[Any]:
    """Yield the tensors, arrays and lists of texts in a batch.

    Yields:
        Parts with a length.
    """
    if _is_rows(item) or _is_texts(item):
        yield item
    elif isinstance(item, (tuple, list, Mapping)):
        for part in item.values() if isinstance(item, Mapping) else item:
            yield from _leaves(part)


def _row(item: Any, row: int, count: int) -> Any:
    if _is_rows(item) or _is_texts(item):
        return item[row] if len(item) == count else item
    if isinstance(item, Mapping):
        return {name: _row(part, row, count) for name, part in item.items()}
    return tuple(_row(part, row, count) for part in item) if isinstance(item, (tuple, list)) else item


def _is_texts(part: object) -> bool:
    return isinstance(part, (tuple, list)) and bool(part) and all(isinstance(one, str) for one in part)


def _is_rows(part: object) -> TypeGuard[torch.Tensor | np.ndarray[Any, Any]]:
    return isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim > 0


def _has_rows(part: object) -> bool:
    return _is_rows(part) or is_frame(part)


def _length(data: Any) -> int:
    """Return the number of samples along the first axis.

    Raises:
        InputError: when there is no such axis, or parts differ in it.
    """
    if isinstance(data, Mapping):
        lengths = {len(part) for part in data.values() if _has_rows(part)}
        if len(lengths) != 1:
            raise InputError(f"the parts of the data ({describe(data)}) must have one length, got {sorted(lengths)}.")
        return lengths.pop()
    if not np.ndim(data):
        raise InputError("data is a single number; give samples along the first axis.")
    return len(data)
