"""What runs on every batch of a data set, and what is kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from ...analyzers.relevance.batch_targets import check_length, class_lists
from ...errors import OptionError
from ...inputs import Inputs
from ...nested import describe
from ...placement import home
from ...stream import Batch
from ...target import Target
from ..block import Block
from ..pieces import Bad

Forward = Callable[..., Any] | None


class Collector(Protocol):
    """What is kept of one shard while it is made."""

    def add(self, batch: Batch) -> None:
        """Run on a batch; when this fails, nothing of the batch is kept."""
        ...

    def bad(self, piece: Bad) -> None:
        """Note a sample that has no numbers."""
        ...

    def finish(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors of the shard, and what else is known of it."""
        ...


class Job(Protocol):
    """An analysis of every sample, which can be sent to other processes."""

    kind: str

    def settings(self) -> dict[str, Any]:
        """Every option as JSON; what the numbers depend on."""
        ...

    def collector(self, model: nn.Module, capacity: int) -> Collector:
        """For one shard of at most `capacity` samples."""
        ...


class RowsJob:
    """An analysis that gives numbers for each sample for itself."""

    kind = ""

    def rows(self, model: nn.Module, batch: Batch) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Numbers by column, `(samples, ...)`, and what is the same for all samples, as JSON."""
        raise NotImplementedError

    def collector(self, model: nn.Module, capacity: int) -> Collector:
        """For one shard of at most `capacity` samples."""
        return RowsCollector(self, model, capacity)


class RowsCollector:
    """The rows of one shard."""

    def __init__(self, job: RowsJob, model: nn.Module, capacity: int) -> None:
        self.job, self.model, self.block = job, model, Block(capacity)
        self.device = home(model)

    def add(self, batch: Batch) -> None:
        """Run on a batch."""
        rows, result = self.job.rows(self.model, on_device(batch, self.device))
        self.block.add(range(batch.start, batch.start + batch.inputs.batch), rows, result)

    def bad(self, piece: Bad) -> None:
        """Note a sample that has no numbers."""
        self.block.bad(piece)

    def finish(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors of the shard, and what else is known of it."""
        return self.block.finish()


def on_device(batch: Batch, device: torch.device | None) -> Batch:
    """The batch where the model is."""
    if device is None or all(tensor.device == device for tensor in batch.inputs.tensors().values()):
        return batch
    return dataclasses.replace(batch, inputs=moved(batch.inputs, device))


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """The inputs on another device."""
    return inputs.map(lambda tensor: tensor.to(device))


def cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A tensor as it is stored: in main memory, floating-point numbers in the type that was asked for."""
    found = tensor.detach().cpu()
    return found.to(dtype) if dtype is not None and found.is_floating_point() else found


def check_classes(aim: Target | None, count: int | None) -> None:
    """See that a list of classes holds one for each sample of the data.

    Raises:
        TargetError: when it does not, or when it is joined with a class that is predicted batch by batch.
    """
    lists = class_lists(aim)
    if count is not None:
        check_length(lists, count)


def stored_type(dtype: torch.dtype | None) -> torch.dtype | None:
    """The type in which numbers are to be stored; None for that of the model.

    Raises:
        OptionError: when it is no floating-point type.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise OptionError(f"dtype must be a floating-point type such as torch.float16, got {describe(dtype)}.")
    return dtype
