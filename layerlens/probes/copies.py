"""Copies of what a record keeps by reference, made just before an operation writes into it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from layerlens.model.layers import LayerPath
from layerlens.model.trees import map_tensors, version
from layerlens.model.writes import tensors_written

from .call import Call, Stored
from .record import Record


@dataclasses.dataclass
class Written:
    """What is known of the writes into the outputs of a model, from its earlier runs.

    A run of another route may write elsewhere: the versions of what a record holds say whether it did.

    Attributes:
        calls: calls whose output, or arguments, a later operation wrote into: `"bn1#0"`.
        layers: layers whose outputs were watched during a run.
    """

    calls: set[str] = dataclasses.field(default_factory=set)
    layers: set[LayerPath] = dataclasses.field(default_factory=set)


_written: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Written]] = weakref.WeakKeyDictionary()


def written(model: nn.Module, kind: Hashable) -> Written:
    """Return what is known of a model, to be added to; `kind` is of what is kept of a call."""
    known = _written.get(model)
    if known is None:
        known = _written[model] = {}
    return known.setdefault(kind, Written())


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copy what a record keeps just before an operation writes into its memory, while a `with` block runs a model.

    Any operation that torch dispatches in this thread is seen: layers and functions in place, `out=`, a write through a
    view or `.data`.

    Args:
        record: record of an open probe that keeps references.
    """

    supports_higher_order_operators = True

    def __init__(self, record: Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record
        self._kept: dict[int | None, list[tuple[torch.Tensor, int]]] = {}  # by storage
        self._calls = 0
        self._copies: dict[tuple[int, int], torch.Tensor] = {}  # by id and version of the tensor
        self._copied: list[torch.Tensor] = []  # so that no other tensor gets their ids

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, as `Follow` does."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tensors_written(function, args, kwargs):
            self._copy(_storage(tensor))
        return function(*args, **kwargs)

    def _copy(self, storage: int | None) -> None:
        """Copy what lies in this memory, unless it was written or copied before."""
        calls = self._record.order
        for call in calls[self._calls :]:
            for one in (*call.stored, *call.stored_inputs):
                self._kept.setdefault(_storage(one[0]), []).append(one)
        self._calls = len(calls)
        entered = [one for stack in self._record.entered for _, stored, _ in stack for one in stored]
        running = [one for one in entered if _storage(one[0]) == storage]
        for tensor, before in (*self._kept.pop(storage, ()), *running) if storage is not None else ():
            if (id(tensor), before) not in self._copies and version(tensor) == before:
                self._copies[id(tensor), before] = tensor.detach().clone()
                self._copied.append(tensor)

    def put(self) -> set[str]:
        """Put the copies into the record, and return the calls that have one: `"bn1#0"`."""
        if not self._copies:
            return set()
        found = {call.name for call in self._record.order if self._has((*call.stored, *call.stored_inputs))}
        self._record.exchange(self._with_copies)
        return found

    def _has(self, kept: Stored) -> bool:
        return any((id(tensor), before) in self._copies for tensor, before in kept)

    def _with_copies(self, call: Call) -> Call:
        changes: dict[str, Any] = {}
        for value, stored in (("value", "stored"), ("arguments", "stored_inputs")):
            kept: Stored = getattr(call, stored)
            if self._has(kept):
                copies = [self._copies.get((id(tensor), before)) for tensor, before in kept]
                changes[value] = _exchanged(getattr(call, value), copies)
                changes[stored] = tuple(one for one, copy in zip(kept, copies, strict=True) if copy is None)
        return dataclasses.replace(call, **changes)


def _exchanged(value: object, copies: Iterable[torch.Tensor | None]) -> Any:
    """A value with a copy of each tensor that has one, in the order of its tensors."""
    found = iter(copies)
    return map_tensors(value, lambda own: own if (copy := next(found)) is None else copy)


def _storage(tensor: torch.Tensor) -> int | None:
    """The identity of a tensor's memory; None for one without, such as a sparse one."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None
