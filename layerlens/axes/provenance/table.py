"""The table of operations, and one executed operation as its rows see it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from .axis import Axes, Axis, best, new

Found: TypeAlias = "Axes | list[Axes | None] | None"
"""The axes of the output; a list for several output tensors, with None for those without a meaning."""

Row: TypeAlias = "Callable[[Operation], Found]"

_ROWS: dict[str, Row] = {}


def row(*names: str) -> Callable[[Row], Row]:
    """Register the row of the operations of these names, such as `"aten.view"`."""

    def add(function: Row) -> Row:
        for name in names:
            _ROWS[name] = function
        return function

    return add


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """What is known of an operation before it runs.

    Attributes:
        name: its name, such as `aten.view`.
        row: its row; that of `add` also serves `add_`, that of `clone` everything that torch calls pointwise. None if
            there is none.
        arguments: name of each argument -> its position and default.
        writes: whether it writes into its first argument.
        picks: whether it takes single entries of an axis.
        fresh: whether it takes nothing from its argument but the type.
    """

    name: str
    row: Row | None
    arguments: dict[str, tuple[int, Any]]
    writes: bool
    picks: bool
    fresh: bool


@functools.cache
def kind_of(function: Any) -> Kind:
    """Return what is known of an operation of torch."""
    schema = getattr(function, "_schema", None)
    if schema is None:  # it takes functions
        names = inspect.signature(function).parameters
        arguments = {name: (place, None) for place, name in enumerate(names)}
        name = str(function.name())
        return Kind(name, _ROWS.get(name), arguments, writes=False, picks=False, fresh=False)
    name = str(schema.name).replace("::", ".")
    arguments = {
        argument.name: (place, argument.default_value if argument.has_default_value() else None)
        for place, argument in enumerate(function._schema.arguments)
    }
    found = _ROWS.get(name) or _ROWS.get(name.rstrip("_"))
    if found is None and torch.Tag.pointwise in function.tags:
        found = _ROWS["aten.clone"]
    picks, fresh = name in ("aten.select", "aten.unbind"), name.startswith("aten.new_") or name.endswith("_like")
    return Kind(name, found, arguments, writes=name.endswith("_"), picks=picks, fresh=fresh)


class Operation:
    """One executed operation.

    Args:
        kind: the operation.
        args: its positional arguments.
        kwargs: its keyword arguments.
        out: what it returned.
        axes_of: returns the axes of a tensor, None for one that does not depend on the input.
        layer: path of the innermost running layer.
        before: the reshapes of this run.

    Attributes:
        out: what it returned.
        layer: path of the innermost running layer.
        name: its name, such as `aten.view`.
        picks: whether it takes single entries of an axis.
        before: the reshapes of this run.
    """

    __slots__ = ("_args", "_axes_of", "_kwargs", "_positions", "before", "layer", "name", "out", "picks")

    def __init__(
        self,
        kind: Kind,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        axes_of: Callable[[Any], Axes | None],
        layer: str = "",
        before: Any = None,
    ) -> None:
        self.layer, self.before = layer, before
        self._args, self._kwargs, self.out, self._axes_of = args, kwargs, out, axes_of
        self.name, self.picks, self._positions = kind.name, kind.picks, kind.arguments

    def __getitem__(self, name: str) -> Any:
        """The argument of this name, or its default."""
        if name in self._kwargs:
            return self._kwargs[name]
        place, default = self._positions[name]
        return self._args[place] if place < len(self._args) else default

    def __contains__(self, name: str) -> bool:
        return name in self._positions

    def get(self, name: str, default: Any) -> Any:
        """Return the argument of this name, or `default` for an operation that does not take it."""
        return self[name] if name in self._positions else default

    @property
    def first(self) -> torch.Tensor:
        """The first tensor among the arguments."""
        if self._args and isinstance(self._args[0], torch.Tensor):
            return self._args[0]
        return next(value for value in (*self._args, *self._kwargs.values()) if isinstance(value, torch.Tensor))

    @property
    def shape(self) -> torch.Size:
        """The shape of the output, or of the first of several."""
        out = self.out if isinstance(self.out, torch.Tensor) else self.out[0]
        return torch.Size(sizes_of(out)) if out.is_nested else out.shape

    def axes(self, tensor: torch.Tensor | None) -> Axes | None:
        """Return the axes of a tensor; None for one that does not depend on the input."""
        return None if tensor is None else self._axes_of(tensor)

    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor among the arguments."""
        found: list[torch.Tensor] = []
        for value in (*self._args, *self._kwargs.values()):
            if isinstance(value, torch.Tensor):
                found.append(value)
            elif isinstance(value, (list, tuple)):
                found.extend(part for part in value if isinstance(part, torch.Tensor))
        return found

    def own(self) -> Axes:
        """Return the axes of the first tensor; ones without a meaning if it does not depend on the input."""
        return self.axes(self.first) or constant(self.first.shape)


def constant(sizes: Sequence[int]) -> Axes:
    """Return the axes of a tensor that does not depend on the input."""
    return tuple(Axis() if size == 1 else new("extra", size) for size in sizes)


def unknown(sizes: Sequence[int], why: str) -> Axes:
    """Return the axes of a tensor of which nothing is known."""
    return tuple(new("unknown", size, why) if size != 1 else Axis() for size in sizes)


def sizes_of(tensor: torch.Tensor) -> list[int]:
    """Return the sizes of a tensor; 0 for a ragged axis."""
    if not tensor.is_nested:
        return list(tensor.shape)
    if tensor.layout is torch.strided:
        return [tensor.size(0), *(0 for _ in range(tensor.ndim - 1))]
    return [size if isinstance(size, int) else 0 for size in tensor.shape]


def broadcast(operation: Operation, tensors: Sequence[torch.Tensor], shape: Sequence[int]) -> Axes:
    """Return the axes of what is computed entry by entry of `tensors`."""
    known = [axes for axes in map(operation.axes, tensors) if axes is not None]
    if len(known) == 1 and [axis.size for axis in known[0]] == list(shape):
        return known[0]
    shifts = [len(shape) - len(axes) for axes in known]
    found: list[Axis] = []
    for place, size in enumerate(shape):
        here = [axes[place - shift] for axes, shift in zip(known, shifts, strict=True) if place >= shift]
        here = [axis for axis in here if axis.size == size]
        found.append(best(here) if here else Axis() if size == 1 else new("extra", size))
    return tuple(found)


def positive(axis: int, rank: int) -> int:
    """Return the number of an axis, counted from the start."""
    return axis % rank if rank else 0


def numbers(value: int | Sequence[int] | None, count: int) -> list[int]:
    """Return one number an axis, of one number or one each."""
    values = [value] if isinstance(value, int) else list(value or [])
    return values * count if len(values) == 1 else values


def replaced(axes: Axes, place: int, axis: Axis) -> Axes:
    """Return `axes` with another axis at `place`."""
    return (*axes[:place], axis, *axes[place + 1 :])
