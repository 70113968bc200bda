"""What runs on every batch of a data set, and what is kept of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from ...errors import TargetError
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


def plain(value: Any) -> Any:
    """A value as JSON; what has no form there is told in words."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(part) for part in value]
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.numel() <= 64 else f"{describe(value)}, SHA-256 {_short(value)}"
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    return named(value)


def named(value: Any) -> str:
    """A function, a class or an object in words that are the same in every process."""
    if isinstance(value, Target):
        return value.label
    if callable(value):
        code = getattr(value, "__code__", None)
        told = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}"
        return told if code is None else f"{told} {_code(code)}"
    return type(value).__qualname__


def target_settings(aim: Target | None) -> Any:
    """What a target scores, as JSON."""
    if aim is None:
        return "label of each sample"
    return aim.label if aim.each is None else {"target": aim.label, "classes": _text_digest("\n".join(aim.each))}


def check_classes(aim: Target | None, count: int | None) -> None:
    """See that a list of classes holds one for each sample of the data.

    Raises:
        TargetError: when it does not.
    """
    if aim is not None and aim.each is not None and count is not None and len(aim.each) != count:
        raise TargetError(f"the target holds {len(aim.each)} classes for {count} samples; give one per sample.")


def _short(tensor: torch.Tensor) -> str:
    from ...digest import digest

    return digest([("", tensor)])[:16]


def _code(code: Any) -> str:
    """A digest of what a function does, so that another function of the same name is told from it."""
    constants = [part if isinstance(part, (int, float, str, bool, type(None))) else "" for part in code.co_consts]
    return _text_digest(f"{code.co_code.hex()} {code.co_names} {constants}")


def _text_digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]
