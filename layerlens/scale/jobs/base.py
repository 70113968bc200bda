"""Jobs: what runs on every batch of a data set, and what is stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from layerlens.analyzers.common.features.batch_targets import check_length
from layerlens.analyzers.common.registry import METHODS
from layerlens.analyzers.relevance.rules.operation_table import TABLE
from layerlens.analyzers.relevance.rules.rulebook import RULEBOOKS
from layerlens.errors import OptionError
from layerlens.inputs.batches import Batch
from layerlens.model.placement import home
from layerlens.model.trees import describe
from layerlens.targets.target import Target

from ..data.source import BadSample
from ..store.fingerprint import as_json
from ..store.shard_builder import ShardBuilder, extend, numbers

_TABLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rows": (TABLE, dict(TABLE)),
    "rulebooks": (RULEBOOKS, dict(RULEBOOKS)),
}


class Collector:
    """The results of one shard while it is made; subclasses implement `take` and `tensors`."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.device = model, home(model)
        self.ids: list[range] = []
        self.errors: dict[int, str] = {}

    def take(self, batch: Batch) -> None:
        """Run on a batch on the device of the model; when this fails, nothing of the batch may be kept."""
        raise NotImplementedError

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the tensors to store, and everything else as JSON."""
        raise NotImplementedError

    def add(self, batch: Batch) -> None:
        """Run on a batch; when this fails, nothing of it is kept."""
        self.take(dataclasses.replace(batch, inputs=batch.inputs.to(self.device)))
        extend(self.ids, range(batch.start, batch.start + batch.inputs.batch))

    def bad(self, sample: BadSample) -> None:
        """Note a bad sample."""
        self.errors[sample.index] = sample.reason

    def finish(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the tensors of the shard, and everything else about it."""
        tensors, about = self.tensors()
        return {"ids": numbers(self.ids), **tensors}, {
            "errors": {str(key): text for key, text in self.errors.items()},
            **about,
        }


class Job(Protocol):
    """An analysis of every sample; it can be sent to other processes."""

    kind: str

    def settings(self) -> dict[str, Any]:
        """Return all options that the numbers depend on, as JSON."""
        ...

    def collector(self, model: nn.Module, capacity: int) -> Collector:
        """Return the collector of one shard of at most `capacity` samples."""
        ...


class RowsJob:
    """An analysis with numbers for each sample."""

    kind = ""

    def rows(self, model: nn.Module, batch: Batch) -> tuple[dict[str, torch.Tensor], Callable[[], dict[str, Any]]]:
        """Return numbers by column, `(samples, ...)`, and what returns everything that all samples share, as JSON."""
        raise NotImplementedError

    def collector(self, model: nn.Module, capacity: int) -> Collector:
        """Return the collector of one shard of at most `capacity` samples."""
        return RowsCollector(self, model, capacity)


class RowsCollector(Collector):
    """The rows of one shard."""

    def __init__(self, job: RowsJob, model: nn.Module, capacity: int) -> None:
        super().__init__(model)
        self.job, self.builder = job, ShardBuilder(capacity)

    def take(self, batch: Batch) -> None:
        """Run on a batch."""
        rows, result = self.job.rows(self.model, batch)
        self.builder.add(range(batch.start, batch.start + batch.inputs.batch), rows, result)

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the columns, and everything that all rows share."""
        columns = list(self.builder.columns)  # safetensors sorts them
        return self.builder.tensors(self.ids), {"result": self.builder.result, "columns": columns}


def registered(method: str = "") -> dict[str, Any]:
    """Return the settings that the user registered: rows, rulebooks and, by its name, a method."""
    found: dict[str, Any] = {}
    for kind, (table, own) in _TABLES.items():
        if changed := {name: as_json(row) for name, row in table.items() if own.get(name) is not row}:
            found[f"registered {kind}"] = changed
    function = METHODS[method].function if method in METHODS else registered
    if not function.__module__.startswith("layerlens."):
        found["registered method"] = as_json(function)
    return found


def cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Return a tensor as it is stored: in main memory, floating-point numbers as `dtype`."""
    found = tensor.detach().cpu()
    return found.to(dtype) if dtype is not None and found.is_floating_point() else found


def check_classes(aim: Target | None, count: int | None) -> None:
    """Check that a target per sample has one for each sample of the data.

    Raises:
        TargetError: when it does not.
    """
    if count is not None:
        check_length(aim, count)


def stored_type(dtype: torch.dtype | None) -> torch.dtype | None:
    """Check the type of stored numbers; None keeps the type of the model.

    Raises:
        OptionError: when it is not a floating-point type.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise OptionError(f"dtype must be a floating-point type such as torch.float16, got {describe(dtype)}.")
    return dtype
