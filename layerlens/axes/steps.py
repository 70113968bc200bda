"""Entries of an input that a loop reads one by one, and whose results are put together again: frames, time steps."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

import torch

from .provenance.axis import Axes, Axis, Part, Source
from .provenance.table import Operation, positive, replaced

Read: TypeAlias = Mapping[Source, tuple[int, float]]
"""Axis of an input -> number of operations since one entry of it was read, and the position of this entry."""


Value = TypeVar("Value")


class OfTensors(Generic[Value]):
    """Values by tensor, as long as the tensor lives: what torch's own weak dictionary does, at a third of its cost."""

    def __init__(self) -> None:
        self.values: dict[int, tuple[weakref.ref[torch.Tensor], Value]] = {}

    def get(self, tensor: object) -> Value | None:
        """Return the value of a tensor; None for one that has none, and for what is not a tensor."""
        found = self.values.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def __setitem__(self, tensor: torch.Tensor, value: Value) -> None:
        self.values[id(tensor)] = weakref.ref(tensor), value


class Steps:
    """Which entry of an input every tensor was computed from, where an axis was read entry by entry."""

    def __init__(self) -> None:
        self.tensors: OfTensors[Read] = OfTensors()

    def note(self, operation: Operation, tensors: Sequence[torch.Tensor]) -> None:
        """Note what an operation returned; of several entries of one axis the one that was read last counts."""
        picks = operation.picks
        read: dict[Source, tuple[int, float]] = {}
        copied = operation.name == "aten.copy_"
        for tensor in operation.tensors()[copied:]:
            for source, (age, position) in self._of(tensor).items():
                if source not in read or age + 1 < read[source][0]:
                    read[source] = (age + 1, position)
        part = operation.own()[positive(operation["dim"], operation.first.ndim)].part if picks else None
        if part is not None and part.source.kind == "input" and (part.size > 1 or part.source.role == "batch"):
            first = operation["index"] % part.size if "index" in operation else 0
            for place, tensor in enumerate(tensors, start=first):
                self.tensors[tensor] = {**read, part.source: (0, part.offset + place * part.stride)}
        elif read:
            for tensor in tensors:
                self.tensors[tensor] = read

    def joined(self, operation: Operation, axes: Axes) -> Axes:
        """Return the axes of tensors that were stacked: an axis of entries that were read one by one is whole again."""
        if operation.name not in ("aten.stack", "aten.cat") or not self.tensors.values:
            return axes
        parts, place = operation.tensors(), positive(operation["dim"], len(axes))
        if len(parts) != axes[place].size:
            return axes
        found: list[Part] = []
        for source in self._of(parts[0]):
            if len(parts) == source.size == 1:
                found.append(Part(source, 1))
            at = [self._of(part)[source][1] for part in parts if source in self._of(part)]
            stride = at[1] - at[0] if len(at) == len(parts) > 1 else 0.0
            if stride and all(abs(one - at[0] - step * stride) < 1e-6 for step, one in enumerate(at)):
                found.append(Part(source, len(at), stride, at[0]))
        return replaced(axes, place, Axis(found)) if len(found) == 1 else axes

    def read(self, tensor: torch.Tensor, source: Source, position: float) -> None:
        """Note that a tensor is one entry of an axis."""
        self.tensors[tensor] = {source: (0, position)}

    def positions(self, tensor: torch.Tensor) -> dict[Source, float]:
        """Return which entry of each axis of an input a tensor was computed from, if entries were read one by one."""
        return {source: position for source, (_, position) in self._of(tensor).items()}

    def _of(self, tensor: torch.Tensor) -> Read:
        return self.tensors.get(tensor) or {}
