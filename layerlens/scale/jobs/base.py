"""What runs on every batch of a data set, and what is kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from layerlens.analyzers.common.features.batch_targets import check_length, class_lists
from layerlens.errors import OptionError
from layerlens.inputs.batches import Batch
from layerlens.model.placement import home
from layerlens.model.trees import describe
from layerlens.targets.target import Target

from ..data.bad_samples import Bad
from ..store.shard_builder import Block

Forward = Callable[..., Any] | None


class Collector:
    """What is kept of one shard while it is made; what exactly, a job's own collector says by `take` and `tensors`."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.device = model, home(model)
        self.ids: list[int] = []
        self.errors: dict[int, str] = {}

    def take(self, batch: Batch) -> None:
        """Run on a batch that lies where the model is; when this fails, nothing of the batch may be kept."""
        raise NotImplementedError

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What is kept as tensors, and what else is known of it, as JSON."""
        raise NotImplementedError

    def add(self, batch: Batch) -> None:
        """Run on a batch; when this fails, nothing of it is kept."""
        self.take(dataclasses.replace(batch, inputs=batch.inputs.to(self.device)))
        self.ids += range(batch.start, batch.start + batch.inputs.batch)

    def bad(self, piece: Bad) -> None:
        """Note a sample that has no numbers."""
        self.errors[piece.index] = piece.reason

    def finish(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors of the shard, and what else is known of it."""
        tensors, about = self.tensors()
        ids = {"ids": torch.tensor(self.ids, dtype=torch.int64)}
        return ids | tensors, {"errors": {str(key): text for key, text in self.errors.items()}, **about}


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


class RowsCollector(Collector):
    """The rows of one shard."""

    def __init__(self, job: RowsJob, model: nn.Module, capacity: int) -> None:
        super().__init__(model)
        self.job, self.block = job, Block(capacity)

    def take(self, batch: Batch) -> None:
        """Run on a batch."""
        rows, result = self.job.rows(self.model, batch)
        self.block.add(range(batch.start, batch.start + batch.inputs.batch), rows, result)

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The columns, and what is the same for all rows."""
        columns = list(self.block.columns)  # safetensors sorts them
        return self.block.tensors(self.ids), {"result": self.block.result, "columns": columns}


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
