"""A data set as a stream of batches: read piece by piece, never all in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from layerlens.errors import InputError, OptionError, check_count
from layerlens.model.placement import home
from layerlens.model.trees import describe, named_tensors
from layerlens.progress import track
from layerlens.signatures import public_class

from .inputs import Input, Inputs, as_inputs
from .misfit import refuse_pair
from .tables import is_frame, is_series
from .transforms import without_label

Samples: TypeAlias = "Data | Dataset[Any] | DataLoader[Any] | Iterable[Any] | Input"
"""A data set: a torch Dataset or DataLoader, any iterable of samples or batches, an input whose rows are samples, or
one of these as `Data`."""

Labels: TypeAlias = "torch.Tensor | np.ndarray[Any, Any] | Sequence[Any]"
"""One name or number per sample."""

Read: TypeAlias = Callable[[Any], Inputs]
"""Turns one item of a data set into model inputs."""

Tag = TypeVar("Tag")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Consecutive samples of a data set.

    Attributes:
        start: index of the first in the data set.
        inputs: model inputs of all of them.
        labels: one per sample; None if the data has none.
    """

    start: int
    inputs: Inputs
    labels: list[Any] | None


@public_class
@dataclasses.dataclass(frozen=True)
class Data:
    """A data set and how it is read; every analyzer takes one as `data`.

    A field that is None is set by the options of the analyzer; any other takes precedence.

    Args:
        samples: a tensor, an array, a DataFrame, or a dict of them, whose first axis is the samples; a torch Dataset or
            DataLoader; or any iterable. An item may be a pair (x, label), where a label is a whole number or a text,
            or a row such as `{"image": picture, "label": 3}`.
        labels: one per sample; None takes those in the samples.
        batch_size: samples per batch; larger batches of the data are split. None: 16.
        batched: whether the items of an iterable are batches. None: yes for a DataLoader that makes batches, no for
            others.
        read: turns a batch, or one text, into model inputs.
        progress: whether to show a bar, as in `track`.

    Example:
        >>> data = Data([torch.ones(2), torch.ones(2)], labels=[7, 3], batch_size=1)
        >>> [(batch.start, batch.labels) for batch in data.batches()]
        [(0, [7]), (1, [3])]
    """

    samples: Samples
    labels: Labels | None = None
    batch_size: int | None = None
    batched: bool | None = None
    read: Read | None = None
    progress: bool | None = None

    @classmethod
    def of(cls, samples: Samples, labels: Labels | None = None, **options: Any) -> Data:
        """Return a data set, with the options of an analyzer for its open fields.

        Args:
            samples: the data set; a `Data` keeps its own options.
            labels: one per sample; None takes those in the samples.
            **options: further fields.

        Raises:
            OptionError: when labels are given twice.
        """
        if not isinstance(samples, Data):
            return cls(samples, labels, **options)
        if labels is not None and samples.labels is not None:
            raise OptionError("labels are given twice: as labels= and in Data(..., labels=).")
        given = {"labels": labels, **options}
        return dataclasses.replace(samples, **{k: value for k, value in given.items() if getattr(samples, k) is None})

    def batches(self, model: nn.Module | None = None, doing: str = "samples") -> Iterator[Batch]:
        """Read the data set in batches.

        At most `batch_size` samples, or one batch of the data itself, are in memory. Samples of different shapes are in
        different batches.

        Args:
            model: model whose device the inputs are moved to; None keeps theirs.
            doing: name of the work, for the bar and for errors.

        Yields:
            The batches, in order.

        Raises:
            InputError: when data cannot be iterated or has no samples; when a sample cannot be read or holds NaN (with
                its index); when labels are not one per sample.
            OptionError: when the batch size is not a count.
        """
        size, read = 16 if self.batch_size is None else self.batch_size, self.read or as_inputs
        check_count("batch_size", size)
        given = None if self.labels is None else per_sample(f"{doing}: labels", self.labels)
        items, whole, total = _items(self.samples, size, self.batched)
        shown = track(items, doing, total, self.progress)
        start = 0
        for inputs, labels in _split(shown, size, read) if whole else grouped(_singles(shown, read), size):
            stop = start + len(labels)
            if given is not None:
                labels = given[start:stop]
                if stop > len(given):
                    raise InputError(f"{doing}: {len(given)} labels for {stop} samples or more; give one per sample.")
            inputs = inputs if model is None else inputs.to(home(model))
            yield Batch(start, inputs, None if any(label is None for label in labels) else labels)
            start = stop
        if not start:
            raise InputError(f"the data ({describe(self.samples)}) is empty: it has no samples.")
        if given is not None and len(given) != start:
            raise InputError(f"{doing}: {len(given)} labels for {start} samples; give one per sample.")

    def check_rereadable(self, times: int, what: str) -> None:
        """Refuse data that can be read only once.

        Raises:
            InputError: for an iterator.
        """
        if isinstance(self.samples, Iterator):
            raise InputError(
                f"{what}: the data is {describe(self.samples)}, which can be read only once; give data that "
                f"can be read {times} times: a tensor, a list, a Dataset or a DataLoader."
            )


def batches(
    data: Samples,
    size: int = 16,
    *,
    batched: bool | None = None,
    read: Read = as_inputs,
    progress: bool | None = None,
    doing: str = "samples",
) -> Iterator[Batch]:
    """Read a data set in batches of at most `size` samples; see `Data`."""
    return Data.of(data, batch_size=size, batched=batched, read=read, progress=progress).batches(doing=doing)


def per_sample(what: str, values: Labels, count: int | None = None) -> list[Any]:
    """Return one name or number per sample as a list.

    Args:
        what: name of the values, for errors.
        values: one per sample.
        count: number of samples; None if unknown.

    Raises:
        InputError: when they are not one per sample.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(listed, str) or not isinstance(listed, Sequence) or count not in (None, len(listed)):
        shown = f"{len(listed)} of them" if isinstance(listed, Sequence) else repr(values)
        every = "" if count is None else f", {count} in all"
        raise InputError(f"{what} must hold one name or number per sample{every}; got {shown}.")
    if any(isinstance(one, (list, tuple, dict)) or one is None for one in listed):
        raise InputError(f"{what} must hold one name or number per sample; got {listed[0]!r} for the first.")
    return list(listed)


def grouped(samples: Iterable[tuple[Inputs, Tag]], size: int) -> Iterator[tuple[Inputs, list[Tag]]]:
    """Join consecutive samples of the same form, at most `size`, each with a tag.

    Yields:
        Joined inputs, and the tags.
    """
    waiting, tags = list[Inputs](), list[Tag]()
    for inputs, tag in samples:
        if waiting and _form(inputs) != _form(waiting[0]):
            yield _joined(waiting), tags
            waiting, tags = [], []
        waiting.append(inputs)
        tags.append(tag)
        del inputs
        if len(waiting) == size:
            whole, done = _joined(waiting), tags
            waiting, tags = [], []
            yield whole, done
    if waiting:
        yield _joined(waiting), tags


def _split(items: Iterable[Any], size: int, read: Read) -> Iterator[tuple[Inputs, list[Any]]]:
    """Split batches of the data into parts of at most `size`.

    Yields:
        Inputs and labels.
    """
    start = 0
    for item in items:
        inputs, labels = read_batch(item, start, read)
        for first in range(0, len(labels), size):
            rows = torch.arange(first, min(first + size, len(labels)))
            yield inputs if len(rows) == len(labels) else inputs.rows(rows), labels[first : first + size]
        start += len(labels)
        del item, inputs


def _singles(items: Iterable[Any], read: Read) -> Iterator[tuple[Inputs, Any]]:
    """Read samples, each as a batch of one.

    Yields:
        Inputs and label.
    """
    for index, item in enumerate(items):
        inputs, label = read_sample(item, index, read)
        del item
        yield inputs, label
        del inputs


def read_batch(item: object, start: int, read: Read) -> tuple[Inputs, list[Any]]:
    """Return model inputs and labels of an item that is a batch, whose first sample has the index `start`.

    Raises:
        InputError: when it is not a batch, or a sample has NaN in it.
    """
    x, label = _x_and_label(item, whole=True)
    inputs = _read(x, start, read)
    return inputs, _labels(label, inputs.batch, start)


def read_sample(item: object, index: int, read: Read) -> tuple[Inputs, Any]:
    """Return model inputs, a batch of one, and label of an item that is one sample; None if it has no label.

    Raises:
        InputError: when it is not one sample, or has NaN in it.
    """
    x, label = _x_and_label(item, whole=False)
    inputs = _read(x if isinstance(x, (str, Inputs)) else _with_batch_axis(x), index, read)
    if inputs.batch != 1:
        raise InputError(
            f"item {index} of the data has {inputs.batch} samples; if items are batches, set batched=True."
        )
    return inputs, _labels(label, 1, index)[0]


def _items(data: Any, size: int, batched: bool | None) -> tuple[Iterable[Any], bool, int | None]:
    """Return the items, whether they are batches, and their number.

    Raises:
        InputError: when the data cannot be read as samples.
    """
    if isinstance(data, (torch.Tensor, np.ndarray)):
        if not data.ndim:
            raise InputError("data is a single number; give samples along the first axis.")
        return (data[i : i + size] for i in range(0, len(data), size)), True, -(-len(data) // size)
    if is_frame(data):
        return (data.iloc[i : i + size] for i in range(0, len(data), size)), True, -(-len(data) // size)
    if is_series(data):
        raise InputError("a Series is one sample, not a data set; give a DataFrame, such as df.loc[[name]].")
    if isinstance(data, Mapping):
        lengths = {len(part) for part in data.values() if _has_rows(part)}
        if len(lengths) != 1:
            raise InputError(f"the parts of the data ({describe(data)}) must have one length, got {sorted(lengths)}.")
        (count,) = lengths
        return (_slice(data, i, size, count) for i in range(0, count, size)), True, -(-count // size)
    if isinstance(data, (str, Inputs)):
        raise InputError("data must have several samples; give an iterable of them.")
    refuse_pair(data)
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
    rows = slice(start, start + size)
    return {
        name: part if not _has_rows(part) or len(part) != count else part.iloc[rows] if is_frame(part) else part[rows]
        for name, part in data.items()
    }


def _has_rows(part: Any) -> bool:
    return is_frame(part) or (isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim > 0)


def _x_and_label(item: object, whole: bool) -> tuple[Any, Any]:
    """Return (x, label) of an item; the label is None if there is none."""
    if isinstance(item, (tuple, list)) and len(item) == 2 and _is_label(item[1], whole):
        return item[0], item[1]
    x, label = without_label(item)
    return (x, label) if label is None or _is_label(label, whole) else (item, None)


def _is_label(part: object, whole: bool) -> bool:
    """Whether this is a whole number or a text for each sample."""
    if isinstance(part, (torch.Tensor, np.ndarray)):
        kind = part.dtype.kind if isinstance(part, np.ndarray) else "f" if part.dtype.is_floating_point else "i"
        return part.ndim == int(whole) and kind in "iu"
    if whole:
        return isinstance(part, (list, tuple)) and all(isinstance(one, (int, str, np.integer)) for one in part)
    return isinstance(part, (int, str, np.integer))


def _labels(label: Any, count: int, start: int) -> list[Any]:
    """Return the labels of a batch as a list.

    Raises:
        InputError: when they are not one per sample.
    """
    if label is None:
        return [None] * count
    listed: Any = label.tolist() if isinstance(label, (torch.Tensor, np.ndarray, np.generic)) else label
    found = list(listed) if isinstance(listed, (list, tuple)) else [listed]
    found = [int(one) if isinstance(one, np.integer) else one for one in found]
    if len(found) != count:
        raise InputError(f"{len(found)} labels for the {count} sample(s) from index {start}; give one per sample.")
    return found


def _read(x: object, start: int, read: Read) -> Inputs:
    """Return model inputs of a batch whose first sample has the index `start`, which errors name.

    Raises:
        InputError: when it cannot be read, or has NaN in it.
    """
    if isinstance(x, Inputs):
        return x
    for name, tensor in named_tensors(_tensors(x)):
        if tensor.is_floating_point() and tensor.ndim:
            bad = torch.isnan(tensor).reshape(len(tensor), -1).any(dim=1)
            if bool(bad.any()):
                raise InputError(
                    f"sample {start + int(bad.nonzero()[0])} of the data{f' (input {name!r})' if name else ''} holds "
                    "NaN; every number computed from it would be NaN."
                )
    try:
        inputs = read(x)
        _ = inputs.batch
    except InputError as error:
        raise InputError(f"the data cannot be read at sample {start}: {error}") from error
    return inputs


def _with_batch_axis(x: object) -> Any:
    if isinstance(x, (torch.Tensor, np.ndarray)):
        return x[None]
    if isinstance(x, Mapping):
        return {name: _with_batch_axis(part) for name, part in x.items()}
    return tuple(_with_batch_axis(part) for part in x) if isinstance(x, (tuple, list)) else x


def _tensors(x: object) -> Any:
    """The value with arrays of numbers as tensors."""
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x) if x.dtype.kind == "f" else None
    if isinstance(x, Mapping):
        return {name: _tensors(part) for name, part in x.items()}
    return tuple(_tensors(part) for part in x) if isinstance(x, (tuple, list)) else x


def _form(inputs: Inputs) -> dict[str, tuple[Any, ...]]:
    return {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in inputs.tensors().items()}


def _joined(several: list[Inputs]) -> Inputs:
    tensors = [inputs.tensors() for inputs in several]
    whole = several[0].replace(
        {name: torch.cat([one[name] for one in tensors]) for name, first in tensors[0].items() if first.ndim}
    )
    named = [one.index for one in several if one.index is not None]
    return dataclasses.replace(whole, index=sum(named, ()) if len(named) == len(several) else None)
