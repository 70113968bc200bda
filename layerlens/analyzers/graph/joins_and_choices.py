"""What operations that join, choose or write numbers add to a signal: constants in some of its places.

Each function notes what one kind of call adds: (notes, number, graph, result, *arguments of the call).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .added_constants import put
from .graph import Graph

if TYPE_CHECKING:
    from .recorder import Notes

Note = Callable[..., None]


def cat(notes: Notes, number: int, graph: Graph, result: torch.Tensor, tensors: Any, dim: int = 0, **_: Any) -> None:
    """Parts that are constants."""
    start = 0
    for tensor in tensors:
        length = tensor.shape[dim] if tensor.ndim == result.ndim else 0
        place = functools.partial(torch.narrow, dim=dim, start=start, length=length)
        put(notes, number, graph, tensor, 1, "constant joined", place)
        start += length


def stack(notes: Notes, number: int, graph: Graph, result: torch.Tensor, tensors: Any, dim: int = 0, **_: Any) -> None:
    """Layers that are constants."""
    for index, tensor in enumerate(tensors):
        put(notes, number, graph, tensor, 1, "constant joined", functools.partial(torch.select, dim=dim, index=index))


def chosen(
    notes: Notes, number: int, graph: Graph, result: Any, condition: Any, input: Any = None, other: Any = None
) -> None:
    """`torch.where` between a signal and a constant."""
    put(notes, number, graph, input, 1, "constant chosen", lambda gradient: gradient * condition)
    put(notes, number, graph, other, 1, "constant chosen", lambda gradient: gradient * ~condition)


def method_where(
    notes: Notes, number: int, graph: Graph, result: Any, input: Any, condition: Any, other: Any = None
) -> None:
    """`Tensor.where`."""
    chosen(notes, number, graph, result, condition, input, other)


def masked_fill(notes: Notes, number: int, graph: Graph, result: Any, input: Any, mask: Any, value: Any) -> None:
    """The value where the mask is set."""
    put(notes, number, graph, value, 1, "constant chosen", lambda gradient: gradient * mask)


def threshold(
    notes: Notes, number: int, graph: Graph, result: Any, input: Any, threshold: float, value: float, *_: Any, **__: Any
) -> None:
    """The value wherever the input is not above the threshold."""
    below = input.detach() <= threshold
    put(notes, number, graph, value, 1, "constant chosen", lambda gradient: gradient * below)


def written(function: Callable[..., torch.Tensor], linear: int = 9) -> Note:
    """For a function linear in its (first `linear`) tensors: it adds what it makes of 0 in place of signals."""

    def note(notes: Notes, number: int, graph: Graph, result: Any, *arguments: Any, **options: Any) -> None:
        def at_zero(value: Any) -> Any:
            carries = isinstance(value, torch.Tensor) and graph.carries(value)
            return torch.zeros_like(value) if carries else value

        with torch.no_grad():
            zeroed = [at_zero(value) if place < linear else value for place, value in enumerate(arguments)]
            constant = function(*zeroed, **{name: at_zero(value) for name, value in options.items()})
            if bool(constant.any()):
                put(notes, number, graph, constant, 1, "constant written")

    return note


def larger_of_two(
    notes: Notes, number: int, graph: Graph, result: Any, input: Any, other: Any = None, *_: Any, **__: Any
) -> None:
    """`torch.max` and `torch.min`, which compare two tensors when the second argument is one."""
    if isinstance(other, torch.Tensor) and isinstance(result, torch.Tensor):
        larger_or_smaller(notes, number, graph, result, input, other)


def side_by_side(dim: int) -> Note:
    """For hstack and its kin: as `cat` along an axis, of tensors with at least that axis."""

    def note(notes: Notes, number: int, graph: Graph, result: torch.Tensor, tensors: Any, **_: Any) -> None:
        parts = [tensor if tensor.ndim == result.ndim else tensor.unsqueeze(-1) for tensor in tensors]
        if all(part.ndim == result.ndim for part in parts):
            cat(notes, number, graph, result, parts, 0 if result.ndim == 1 else dim)

    return note


def pad(
    notes: Notes,
    number: int,
    graph: Graph,
    result: Any,
    input: Any,
    pad: Any,
    mode: str = "constant",
    value: Any = None,
) -> None:
    """A border of a value other than 0."""
    if value:
        border = F.pad(torch.zeros_like(input.detach()), pad, value=1.0)
        put(notes, number, graph, value, 1, "constant padded", lambda gradient: gradient * border)


def larger_or_smaller(
    notes: Notes, number: int, graph: Graph, result: torch.Tensor, input: Any, other: Any, **_: Any
) -> None:
    """The constant where it is the larger, or smaller, one."""
    for one, two in ((input, other), (other, input)):  # the larger, or smaller, wins; a tie is shared
        wins = (result == one).to(result.dtype) / (1 + (one == two).to(result.dtype))
        put(notes, number, graph, one, 1, "constant chosen", functools.partial(torch.mul, wins))
