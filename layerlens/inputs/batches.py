"""A data set as a stream of batches: read piece by piece, never all in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from layerlens.errors import InputError, check_count
from layerlens.model.trees import describe, named_tensors
from layerlens.progress import track

from .inputs import Input, Inputs, as_inputs

Samples: TypeAlias = "Dataset[Any] | DataLoader[Any] | Iterable[Any] | Input"
"""A data set: a torch Dataset or DataLoader, any iterable of samples or batches, or an input whose rows are samples."""

Read: TypeAlias = Callable[[Any], Inputs]
"""Turns one item of a data set into model inputs."""
Tag = TypeVar("Tag")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some samples of a data set that follow each other.

    Attributes:
        start: index of the first in the data set.
        inputs: of the model, for all of them.
        labels: one per sample; None where the data has none.
    """

    start: int
    inputs: Inputs
    labels: list[Any] | None


def batches(
    data: Samples,
    size: int = 16,
    *,
    batched: bool | None = None,
    read: Read = as_inputs,
    progress: bool | None = None,
    doing: str = "samples",
) -> Iterator[Batch]:
    """Read a data set in batches of at most `size` samples.

    No more than `size` samples, or one batch of the data itself, are held at a time. Samples of different shapes do
    not share a batch.

    Args:
        data: a tensor, an array, or a dict of them, whose first axis is the samples; a torch Dataset or DataLoader; or
            any iterable. An item may be a pair (x, label), where a label is a whole number or a text.
        size: samples per batch; larger batches of the data are split.
        batched: whether the items of an iterable are batches. None: yes for a DataLoader that makes batches, no for
            others.
        read: makes model inputs of a batch, or of one text.
        progress: whether to show a bar, as in `track`.
        doing: what is being done, for the bar.

    Yields:
        The batches, in order.

    Raises:
        InputError: when data cannot be iterated, holds no sample, or a sample holds NaN (by its index) or is not one.
        OptionError: when `size` is no count.

    Example:
        >>> [(batch.start, batch.labels) for batch in batches([(torch.ones(2), 7), (torch.ones(2), 3)], 1)]
        [(0, [7]), (1, [3])]
    """
    check_count("batch_size", size)
    items, whole, total = _items(data, size, batched)
    shown = track(items, doing, total, progress)
    start = 0
    for inputs, labels in _split(shown, size, read) if whole else grouped(_singles(shown, read), size):
        yield Batch(start, inputs, None if any(label is None for label in labels) else labels)
        start += len(labels)
    if not start:
        raise InputError(f"the data ({describe(data)}) is empty: there is no sample in it.")


def grouped(samples: Iterable[tuple[Inputs, Tag]], size: int) -> Iterator[tuple[Inputs, list[Tag]]]:
    """Join single samples that follow each other and have the same form, at most `size`, each with a tag."""
    held, tags = list[Inputs](), list[Tag]()
    for inputs, tag in samples:
        if held and _form(inputs) != _form(held[0]):
            yield _joined(held), tags
            held, tags = [], []
        held.append(inputs)
        tags.append(tag)
        del inputs
        if len(held) == size:
            whole, done = _joined(held), tags
            held, tags = [], []
            yield whole, done
    if held:
        yield _joined(held), tags


def _split(items: Iterable[Any], size: int, read: Read) -> Iterator[tuple[Inputs, list[Any]]]:
    """Batches of the data in parts of at most `size`."""
    start = 0
    for item in items:
        inputs, labels = read_batch(item, start, read)
        for first in range(0, len(labels), size):
            rows = torch.arange(first, min(first + size, len(labels)))
            yield inputs if len(rows) == len(labels) else inputs.rows(rows), labels[first : first + size]
        start += len(labels)
        del item, inputs


def _singles(items: Iterable[Any], read: Read) -> Iterator[tuple[Inputs, Any]]:
    """Samples, each as a batch of one, with its label."""
    for index, item in enumerate(items):
        inputs, label = read_sample(item, index, read)
        del item
        yield inputs, label
        del inputs


def read_batch(item: Any, start: int, read: Read) -> tuple[Inputs, list[Any]]:
    """Model inputs and labels of an item that is a batch, whose first sample has the index `start`.

    Raises:
        InputError: when it is none, or a sample holds NaN.
    """
    x, label = _parted(item, whole=True)
    inputs = _read(x, start, read)
    return inputs, _labels(label, inputs.batch, start)


def read_sample(item: Any, index: int, read: Read) -> tuple[Inputs, Any]:
    """Model inputs, a batch of one, and label of an item that is one sample; None where it has no label.

    Raises:
        InputError: when it is none, or holds NaN.
    """
    x, label = _parted(item, whole=False)
    inputs = _read(x if isinstance(x, (str, Inputs)) else _with_batch_axis(x), index, read)
    if inputs.batch != 1:
        raise InputError(
            f"item {index} of the data holds {inputs.batch} samples; where items are batches, say so: batched=True."
        )
    return inputs, _labels(label, 1, index)[0]


def _items(data: Any, size: int, batched: bool | None) -> tuple[Iterable[Any], bool, int | None]:
    """What to go through, whether its items are batches, and how many they are."""
    if isinstance(data, (torch.Tensor, np.ndarray)):
        if not data.ndim:
            raise InputError("data is a single number; give samples along the first axis.")
        return (data[i : i + size] for i in range(0, len(data), size)), True, -(-len(data) // size)
    if isinstance(data, Mapping):
        lengths = {len(part) for part in data.values() if isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim}
        if len(lengths) != 1:
            raise InputError(f"the parts of the data ({describe(data)}) must have one length, got {sorted(lengths)}.")
        (count,) = lengths
        return (_slice(data, i, size, count) for i in range(0, count, size)), True, -(-count // size)
    if isinstance(data, (str, Inputs)):
        raise InputError("data must hold several samples; give an iterable of them.")
    total = len(data) if isinstance(data, Sized) else None
    if isinstance(data, DataLoader):
        return data, data.batch_sampler is not None if batched is None else batched, total
    if isinstance(data, Dataset) and not hasattr(data, "__iter__") and total is not None:
        return (data[i] for i in range(total)), bool(batched), total
    if not isinstance(data, Iterable):
        raise InputError(
            f"data is {describe(data)}; give a tensor, a Dataset, a DataLoader, or an iterable of samples."
        )
    return data, bool(batched), total


def _slice(data: Mapping[str, Any], start: int, size: int, count: int) -> dict[str, Any]:
    parts = data.items()
    return {
        name: part[start : start + size]
        if isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim and len(part) == count
        else part
        for name, part in parts
    }


def _parted(item: Any, whole: bool) -> tuple[Any, Any]:
    """(x, label) of an item; the label is None where there is none."""
    if isinstance(item, (tuple, list)) and len(item) == 2 and _is_label(item[1], whole):
        return item[0], item[1]
    return item, None


def _is_label(part: Any, whole: bool) -> bool:
    """A whole number or a text for each sample."""
    if isinstance(part, (torch.Tensor, np.ndarray)):
        kind = part.dtype.kind if isinstance(part, np.ndarray) else "f" if part.dtype.is_floating_point else "i"
        return part.ndim == int(whole) and kind in "iu"
    if whole:
        return isinstance(part, (list, tuple)) and all(isinstance(one, (int, str, np.integer)) for one in part)
    return isinstance(part, (int, str, np.integer))


def _labels(label: Any, count: int, start: int) -> list[Any]:
    if label is None:
        return [None] * count
    listed: Any = label.tolist() if isinstance(label, (torch.Tensor, np.ndarray, np.generic)) else label
    found = list(listed) if isinstance(listed, (list, tuple)) else [listed]
    found = [int(one) if isinstance(one, np.integer) else one for one in found]
    if len(found) != count:
        raise InputError(f"{len(found)} labels for the {count} sample(s) from {start} on; give one per sample.")
    return found


def _read(x: Any, start: int, read: Read) -> Inputs:
    """Model inputs of a batch whose first sample has the index `start`, which is told if anything is wrong."""
    if isinstance(x, Inputs):
        return x
    for name, tensor in named_tensors(_tensors(x)):
        if tensor.is_floating_point() and tensor.ndim:
            bad = torch.isnan(tensor).reshape(len(tensor), -1).any(dim=1)
            if bool(bad.any()):
                raise InputError(
                    f"sample {start + int(bad.nonzero()[0])} of the data{f' (input {name!r})' if name else ''} holds "
                    "NaN; every number made from it would be NaN."
                )
    try:
        inputs = read(x)
        _ = inputs.batch
    except InputError as error:
        raise InputError(f"the data cannot be read at sample {start}: {error}") from error
    return inputs


def _with_batch_axis(x: Any) -> Any:
    if isinstance(x, (torch.Tensor, np.ndarray)):
        return x[None]
    if isinstance(x, Mapping):
        return {name: _with_batch_axis(part) for name, part in x.items()}
    return tuple(_with_batch_axis(part) for part in x) if isinstance(x, (tuple, list)) else x


def _tensors(x: Any) -> Any:
    """The same with arrays of numbers seen as tensors."""
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x) if x.dtype.kind == "f" else None
    if isinstance(x, Mapping):
        return {name: _tensors(part) for name, part in x.items()}
    return tuple(_tensors(part) for part in x) if isinstance(x, (tuple, list)) else x


def _form(inputs: Inputs) -> dict[str, tuple[Any, ...]]:
    return {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in inputs.tensors().items()}


def _joined(several: list[Inputs]) -> Inputs:
    tensors = [inputs.tensors() for inputs in several]
    return several[0].replace(
        {name: torch.cat([one[name] for one in tensors]) for name, first in tensors[0].items() if first.ndim}
    )
