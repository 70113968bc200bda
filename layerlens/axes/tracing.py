"""Threads that follow axes, and the functions of torch that are followed as one operation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from threading import Lock, get_ident
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

_TRACING: dict[int, list[Callable[..., None]]] = {}
"""Thread -> what notes an operation in each of the traces that run in it."""

_WHOLE = ("lstm", "gru", "rnn_tanh", "rnn_relu", "_pad_packed_sequence", "einsum")
"""Functions that are followed as one operation: step by step they are hundreds, or lose their letters."""

_PLACES = [(place, name) for name in _WHOLE for place in (torch, torch._VF) if (place, name) != (torch, "einsum")]
"""Where torch's own layers and `torch.einsum`, or a model, look them up."""

_LEAVING = ("numpy", "tolist")
"""Methods by which the numbers of a tensor leave torch."""

_ORIGINAL: list[tuple[Any, str, Any, bool]] = []
"""Place, name, function, and whether the place holds it itself, while they are replaced."""

_REPLACED = Lock()
"""Held while that is done, or undone."""


@functools.cache
def _whole(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of torch that is followed as one operation where a thread follows axes."""
    packet = getattr(torch.ops.aten, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        traces = _TRACING.get(get_ident())
        if not traces:
            return original(*args, **kwargs)
        with _disable_current_modes():
            out = original(*args, **kwargs)
        if "default" in packet.overloads():
            overload = packet.default
        else:
            packed = isinstance(args[1], torch.Tensor) and isinstance(args[3], (list, tuple))
            overload = packet.data if packed else packet.input
        traces[-1](overload, args, kwargs, out)
        return out

    return call


@functools.cache
def _leaving(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method by which numbers leave torch, noted where a thread follows axes."""

    def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for note in _TRACING.get(get_ident(), ())[-1:]:
            note(torch.ops.aten._local_scalar_dense.default, (tensor,), {"way": name}, None)
        return original(tensor, *args, **kwargs)

    return call


@contextlib.contextmanager
def traced(note: Callable[..., None]) -> Iterator[None]:
    """Note that this thread runs the model to follow its axes, so that open probes do not record it.

    While any thread does, the functions of `_WHOLE` are replaced. A function mode would see them too, but also every
    other function and every attribute of a tensor, which costs a third of a forward pass of a small model.

    Args:
        note: called with operation, arguments, keyword arguments, and result of such a function.
    """
    thread = get_ident()
    with _REPLACED:
        if not _TRACING:
            for place, name in [*_PLACES, *((torch.Tensor, name) for name in _LEAVING)]:
                original = getattr(place, name)
                _ORIGINAL.append((place, name, original, name in vars(place)))
                setattr(place, name, (_leaving if place is torch.Tensor else _whole)(name, original))
        _TRACING.setdefault(thread, []).append(note)
    try:
        yield
    finally:
        with _REPLACED:
            _TRACING[thread].pop()
            if not _TRACING[thread]:
                del _TRACING[thread]
            while _ORIGINAL and not _TRACING:
                place, name, original, own = _ORIGINAL.pop()
                setattr(place, name, original) if own else delattr(place, name)


def tracing() -> bool:
    """Return whether this thread runs the model to follow its axes."""
    return get_ident() in _TRACING
