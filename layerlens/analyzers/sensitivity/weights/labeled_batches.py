"""The samples and labels that measures of weights use, read batch by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from layerlens.errors import InputError
from layerlens.inputs.batches import batches
from layerlens.inputs.inputs import Inputs, as_inputs
from layerlens.model.trees import describe, map_tensors

LABELS = "labels of layerlens"
"""The name under which labels travel with the inputs while a data set is read; no keyword can have it."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some samples.

    Attributes:
        inputs: inputs of the model.
        labels: one row for each sample, or None.
        start: index of the first sample in the data.
    """

    inputs: Inputs
    labels: torch.Tensor | None
    start: int


@dataclasses.dataclass(frozen=True)
class LabeledSamples:
    """Model inputs or a data set, with or without labels, to read in pieces.

    Attributes:
        x: a tensor, a tuple of arguments, a dict, `Inputs`, a text; else a data set, see `layerlens.inputs.batches`.
        labels: one for each sample; None for the labels in the data; `"last"` if they are the last entry of each item.
        size: number of samples in a piece.
        batched: whether the items of a data set are batches; None: yes for a DataLoader, no for others.
        read: turns a batch, or one text, into model inputs.
        device: device of the model.
    """

    x: Any
    labels: Any
    size: int
    batched: bool | None
    read: Callable[[Any], Inputs]
    device: torch.device | None

    def check_rereadable(self, what: str) -> None:
        """Check that the data can be read more than once.

        Raises:
            InputError: when it cannot.
        """
        if isinstance(self.x, Iterator):
            raise InputError(
                f"{what} reads the data twice, and an iterator can be read once. Give a list or a DataLoader."
            )

    def __call__(self, doing: str, progress: bool | None) -> Iterator[Piece]:
        """Yield the samples, in order.

        Raises:
            InputError: when they cannot be read, or labels do not fit.
        """
        data, batched = self.x, self.batched
        if isinstance(self.labels, str):
            if self.labels != "last":
                raise InputError(f"labels must be one for each sample, None or 'last', got {self.labels!r}.")
            batched_items = (
                isinstance(data, DataLoader) and data.batch_sampler is not None if batched is None else batched
            )
            data, batched = _SplitLabels(data, batched_items, self.read), batched_items
        elif isinstance(data, (str, torch.Tensor, np.ndarray, tuple, Mapping, Inputs)):
            data, batched = [data if isinstance(data, Inputs) else self.read(data)], True
        given = None if self.labels is None or isinstance(self.labels, str) else _as_tensor(self.labels)
        count = 0
        for batch in batches(data, self.size, batched=batched, read=self.read, progress=progress, doing=doing):
            inputs, labels = batch.inputs, _class_numbers(batch.labels)
            if LABELS in inputs.kwargs:
                rest = dict(inputs.kwargs)
                labels = rest.pop(LABELS)
                inputs = Inputs(inputs.args, rest)
            count = batch.start + inputs.batch
            if given is not None:
                if given.ndim == 0 or len(given) < count:
                    raise InputError(f"labels hold {len(given) if given.ndim else 1} rows for {count} or more samples.")
                labels = given[batch.start : count]
            yield Piece(inputs.to(self.device), labels, batch.start)
        if given is not None and len(given) != count:
            raise InputError(f"labels hold {len(given)} rows for {count} samples; give one for each.")


class _SplitLabels:
    """A data set of items whose last entry is the label, read as inputs that carry it."""

    def __init__(self, data: Any, batched_items: bool, read: Callable[[Any], Inputs]) -> None:
        self.data, self.batched_items, self.read = data, batched_items, read

    def __iter__(self) -> Iterator[Inputs]:
        data = self.data
        sized = isinstance(data, Dataset) and not hasattr(data, "__iter__")
        items: Iterable[Any] = (data[i] for i in range(len(data))) if sized else data
        for item in items:
            if not isinstance(item, (tuple, list)) or len(item) < 2:
                raise InputError(f"labels='last' needs items (x, ..., label), got {describe(item)}.")
            rest, label = item[:-1], _as_tensor(item[-1])
            x = rest[0] if len(rest) == 1 else tuple(rest)
            if not self.batched_items:
                x, label = map_tensors(_arrays(x), lambda tensor: tensor[None]), label[None]
            inputs = self.read(x)
            yield Inputs(inputs.args, {**inputs.kwargs, LABELS: label})


def _arrays(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return as_inputs(x).args[0]
    return tuple(_arrays(part) for part in x) if isinstance(x, tuple) else x


def _as_tensor(labels: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(labels).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"labels must be numbers, one row for each sample, got {describe(labels)}.") from error


def _class_numbers(labels: list[Any] | None) -> torch.Tensor | None:
    if labels is None:
        return None
    if any(isinstance(label, str) for label in labels):
        raise InputError(f"labels must be the numbers of classes here, got the text {labels[0]!r}.")
    return torch.tensor([int(label) for label in labels])
